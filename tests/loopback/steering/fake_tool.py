"""iptables without a kernel: tables in memory that take what iptables-restore takes, and fail when told to."""

from collections.abc import Iterable

import trio
from attrs import field, frozen

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.steering.iptables.tool import RulesState, Tool, Variant

BUILT_IN = {"nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), "filter": ("INPUT", "FORWARD", "OUTPUT")}
FOREIGN = {
    "nat": {"PREROUTING": ["-j KUBE-SERVICES"], "OUTPUT": ["-j KUBE-SERVICES"], "KUBE-SERVICES": ["-j RETURN"]},
    "filter": {"INPUT": ["-j KUBE-FIREWALL"], "KUBE-FIREWALL": []},
}


class FakeKernel:
    """The tables of one family, with rules of others in them."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, list[str]]] = {}
        self.generation = 7
        """None of a legacy kernel changes it; tests do."""
        self.inputs: list[str] = []
        """What restore was given, whether it took it or not."""
        self.looks: list[str] = []
        """The tables that save was asked for."""
        self.refuses = ""
        """Restore fails if this is in its input, before the table with it is changed."""
        self.blind_to: set[str] = set()
        """The tables that save fails for."""
        self.other_words: tuple[str, str] | None = None
        """What save prints other than it was written: the one for the other."""
        self.restore_hangs = False
        self.intruder: list[tuple[str, str]] = []
        """What somebody does right after the next restore, as ``act`` does it."""
        for table, built_in in BUILT_IN.items():
            self.tables[table] = {name: [] for name in built_in} | {
                name: list(rules) for name, rules in FOREIGN[table].items()
            }

    def foreign(self) -> dict[str, dict[str, list[str]]]:
        """Return all that is not ours."""
        return {
            table: {
                name: [rule for rule in rules if " USP-" not in rule]
                for name, rules in chains.items()
                if not name.startswith("USP-")
            }
            for table, chains in self.tables.items()
        }

    def own(self) -> dict[str, dict[str, list[str]]]:
        """Return our chains, and the rules of others' chains that lead to them."""
        return {
            table: {
                name: kept
                for name, rules in chains.items()
                if (kept := rules if name.startswith("USP-") else [rule for rule in rules if " USP-" in rule])
            }
            for table, chains in self.tables.items()
        }

    def act(self, table: str, *lines: str) -> None:
        """Do what somebody else does, by lines of iptables-restore and ``-F`` for all that is in a table."""
        self._take(table, lines)
        self.generation += 1

    def restore(self, text: str) -> None:
        """Take an input, table by table.

        Raises:
            SteeringError: the rest was not taken.
        """
        self.inputs.append(text)
        for part in text.split("COMMIT\n")[:-1]:
            heading, *lines = part.splitlines()
            if self.refuses and self.refuses in part:
                raise SteeringError(f"no {self.refuses}")
            self._take(heading[1:], lines)
            self.generation += 1
        for table, line in self.intruder:
            self.act(table, line)
        self.intruder.clear()

    def save(self, table: str) -> str:
        """Return the output of iptables-save.

        Raises:
            SteeringError: the test wants it so.
        """
        self.looks.append(table)
        if table in self.blind_to:
            raise SteeringError(f"{table} cannot be read")
        chains = self.tables[table]
        lines = [f":{name} {'ACCEPT' if name in BUILT_IN[table] else '-'} [0:0]" for name in chains]
        lines += [f"-A {name} {rule}" for name, rules in chains.items() for rule in rules]
        saved = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        return saved.replace(*self.other_words) if self.other_words else saved

    def _take(self, table: str, lines: Iterable[str]) -> None:
        chains = {name: list(rules) for name, rules in self.tables[table].items()}
        for line in lines:
            command, _, rest = line.partition(" ")
            name, _, rule = rest.partition(" ")
            if command == "-F":
                chains = {name: [] for name in BUILT_IN[table]}
            elif command.startswith(":"):
                chains[command[1:]] = []
            else:
                _change(chains, command, name, rule)
        for rules in chains.values():
            for rule in rules:
                target = rule.split()[rule.split().index("-g" if " -g " in f" {rule}" else "-j") + 1]
                if "-" in target and target not in chains:
                    raise SteeringError(f"no chain {target}")
        self.tables[table] = chains


def _change(chains: dict[str, list[str]], command: str, name: str, rule: str) -> None:
    if name not in chains:
        raise SteeringError(f"no chain {name}")
    if command == "-A":
        chains[name].append(rule)
    elif command == "-I":
        chains[name].insert(0, rule)
    elif command == "-D":
        if rule not in chains[name]:
            raise SteeringError(f"no rule {rule}")
        chains[name].remove(rule)
    else:
        assert command == "-X", command
        if chains.pop(name):
            raise SteeringError(f"{name} is not empty")


@frozen
class FakeTool(Tool):
    """The commands for such a kernel."""

    kernel: FakeKernel = field(kw_only=True)
    may_watch: bool = field(default=True, kw_only=True)

    async def save(self, table: str | None = None) -> str:
        """Return the rules of one table."""
        await trio.lowlevel.checkpoint()
        assert table is not None
        return self.kernel.save(table)

    async def restore(self, text: str) -> None:
        """Change the rules."""
        if self.kernel.restore_hangs:
            self.kernel.inputs.append(text)
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        self.kernel.restore(text)

    def read_state(self, tables: Iterable[str]) -> RulesState | None:
        """Return the generation, as numbers of each table for the legacy variant."""
        if not self.may_watch:
            return None
        if self.variant is Variant.NFT:
            return RulesState(self.kernel.generation, ())
        return RulesState(None, tuple(repr(self.kernel.tables[table]).encode() for table in tables))


def fake_tool(
    kernel: FakeKernel,
    family: Family = Family.IPV4,
    *,
    variant: Variant = Variant.NFT,
    may_watch: bool = True,
) -> FakeTool:
    """Return the tool of a kernel."""
    return FakeTool(family, variant, "iptables-save", "iptables-restore", kernel=kernel, may_watch=may_watch)
