"""A table that is changed again and again is what it would be if it were written at once."""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_network

import pytest
from builders import frontend, named, pool_key, route
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.names import Family, NamespacedName, Protocol
from userspace_proxy.plan.state import Route, SteeringRule, Verdict
from userspace_proxy.steering.base import Surroundings
from userspace_proxy.steering.nftables.content import Content
from userspace_proxy.steering.nftables.listing import Listed
from userspace_proxy.steering.nftables.rules import Table, digest
from userspace_proxy.steering.nftables.text import write_all, write_difference, write_removal
from userspace_proxy.steering.rule_steering import Conditions, PortRule, ServiceRules

TABLE = Table(Family.IPV4, "own")
NODE = Conditions(Surroundings(), ("eth0", "lo"), IPv4Address("10.0.0.1"))
WEB, DNS = named("shop/web"), named("kube-system/dns")
POOL = pool_key()
NOT_OUTSIDE = Route(POOL, POOL, Verdict.DROP)
RANGED = route(POOL, source_ranges=["192.0.2.0/24"])

_STATEMENT = re.compile(r"(\w+) (\w+) ip own ?(\S*) ?((?:\{\n[^}]*\n\})?.*)\n")
_COMMENT = re.compile(r' comment "[^"]*"')


class Kernel:
    """A table as nft would make it of what it is told; strict as the kernel is."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, str]] | None = None
        """None: there is no table."""
        self.chains: dict[str, list[str]] = {}
        self.elements_changed = 0

    def run(self, statements: Iterable[str]) -> None:
        """Do what is told."""
        for text in statements:
            assert _STATEMENT.sub("", text) == "", f"not understood: {text}"
            for statement in _STATEMENT.finditer(text):
                verb, kind, name, rest = statement.groups()
                match verb, kind:
                    case "add", "table":
                        self.sets = self.sets or {}
                    case "delete", "table":
                        self.sets, self.chains = None, {}
                    case "add", "set" | "map":
                        self._sets()[name] = {}
                    case _, "element":
                        self._change_elements(verb, name, rest)
                    case "add", "chain":
                        self.chains.setdefault(name, [])
                    case _:
                        self._change_chain(verb, name, rest)

    def listed(self) -> Listed:
        """Return what nft would list."""
        return Listed(
            sets=frozenset(self._sets()),
            elements={(name, key): value for name, found in self._sets().items() for key, value in found.items()},
            hooks=TABLE.hooks,
            rules={name: tuple(rules) for name, rules in self.chains.items()},
        )

    def _sets(self) -> dict[str, dict[str, str]]:
        assert self.sets is not None, "there is no table"
        return self.sets

    def _change_elements(self, verb: str, name: str, rest: str) -> None:
        elements = self._sets()[name]
        for line in rest.strip("{}\n").split(",\n"):
            self.elements_changed += 1
            key, _, value = _COMMENT.sub("", line).partition(" : ")
            if verb == "delete":
                del elements[key]
            else:
                assert key not in elements, "File exists"
                assert not value.startswith("goto ") or value[5:] in self.chains, "No such file or directory"
                elements[key] = value

    def _change_chain(self, verb: str, name: str, rest: str) -> None:
        if verb == "add":
            self.chains[name].append(rest.rpartition(" comment ")[2].strip('"'))
        elif verb == "flush":
            self.chains[name].clear()
        else:
            assert not self.chains[name]
            assert not any(f"goto {name}" in found.values() for found in self._sets().values()), "busy"
            del self.chains[name]


ROUTES = (None, NOT_OUTSIDE, RANGED, route(POOL, source_ranges=["198.51.100.0/24"]), route(Verdict.DROP))


@st.composite
def services(draw: st.DrawFn) -> ServiceRules:
    """Draw what a Service asks for, of so little that several ask for the same."""
    steered, ports = {}, set()
    for address in draw(st.sets(st.sampled_from(["10.96.0.1", "10.96.0.2", "10.96.0.3"]), max_size=2)):
        number = draw(st.integers(12000, 12002))
        steered[address] = SteeringRule(frontend(f"{address}:80"), number)
        ports.add(PortRule(Protocol.TCP, None, number, is_proxy_port=True, route=draw(st.sampled_from(ROUTES))))
    for at in draw(st.sets(st.sampled_from([None, IPv4Address("10.0.0.1")]))):
        restricted = draw(st.sampled_from(ROUTES[1:]))
        ports.add(PortRule(Protocol.UDP, at, 30080, is_proxy_port=False, route=restricted))
    return ServiceRules(tuple(steered.values()), tuple(ports))


def conditions() -> st.SearchStrategy[Conditions]:
    """Draw conditions of a node."""
    return st.builds(
        lambda interfaces, address, networks: Conditions(
            Surroundings(tuple(ip_network(one) for one in networks)),
            tuple(sorted(interfaces)),
            address and IPv4Address(address),
        ),
        st.sets(st.sampled_from(["lo", "eth0", "eth1"])),
        st.sampled_from([None, "10.0.0.1", "10.0.0.2"]),
        st.sampled_from([(), ("10.0.1.0/24",)]),
    )


CHANGES = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from([WEB, DNS, named("a/b")]), st.one_of(st.just(ServiceRules()), services())),
        conditions(),
    ),
    min_size=1,
    max_size=6,
)


def from_scratch(wanted: Mapping[NamespacedName, ServiceRules], conditions: Conditions) -> Content:
    """Return the content of a table that is asked for all at once."""
    content = Content(TABLE)
    content.replace(wanted, conditions)
    return content


def write(content: Content) -> Kernel:
    """Return a table that was written at once."""
    kernel = Kernel()
    kernel.run(write_all(TABLE, content.elements, content.chains))
    return kernel


def service(*steered: tuple[str, int], route: Route | None = None) -> ServiceRules:
    """Return what a Service asks for whose addresses are led to proxy ports."""
    return ServiceRules(
        tuple(SteeringRule(frontend(at), port) for at, port in steered),
        tuple(PortRule(Protocol.TCP, None, port, is_proxy_port=True, route=route) for _, port in steered),
    )


def change(before: Mapping[NamespacedName, ServiceRules], now: Mapping[NamespacedName, ServiceRules]) -> str:
    """Return what nft is told when Services ask for something else."""
    content = from_scratch(before, NODE)
    return "".join(write_difference(TABLE, content.replace(now, NODE)))


@given(CHANGES)
def test_changes_one_by_one_come_to_what_is_written_at_once(
    changes: list[tuple[dict[NamespacedName, ServiceRules], Conditions]],
) -> None:
    """Whatever Services and the node ask for in turn, also several for the same: the table is as if newly written."""
    content, kernel = Content(TABLE), Kernel()
    wanted: dict[NamespacedName, ServiceRules] = {}
    for changed, now in changes:
        difference = content.replace(changed, now)
        if kernel.sets is None:
            kernel = write(content)
        else:
            kernel.run(write_difference(TABLE, difference))
        for name, rules in changed.items():
            wanted.pop(name, None)
            wanted[name] = rules
        fresh = from_scratch(wanted, now)
        assert kernel.listed() == write(fresh).listed()
        assert not content.compare(kernel.listed())
        assert content.compare(kernel.listed()) is not None


@given(services(), conditions(), st.data())
def test_elements_that_others_have_changed_are_put_back_alone(
    rules: ServiceRules, now: Conditions, data: st.DataObject
) -> None:
    """Whatever is removed, added or led elsewhere: as many elements are written as differ, and all is as it was."""
    content = from_scratch({WEB: rules, DNS: service(("10.96.0.9:53", 12009), route=RANGED)}, now)
    kernel = write(content)
    before = kernel.listed()
    for found in (kernel.sets or {}).values():
        for key in data.draw(st.sets(st.sampled_from(sorted(found)))) if found else ():
            if data.draw(st.booleans()) or not found[key]:
                del found[key]
            else:
                found[key] = "drop"
        if data.draw(st.booleans()):
            found["stray"] = "1"
    difference = content.compare(kernel.listed())
    assert difference is not None
    kernel.run(write_difference(TABLE, difference))
    assert kernel.listed() == before


def test_one_service_more_is_written_as_its_elements_alone() -> None:
    """A change is as long as what changes."""
    before = {named(f"a/{number}"): service((f"10.96.1.{number}:80", 13000 + number)) for number in range(100)}
    assert change(before, {WEB: service(("10.96.0.10:80", 12345))}) == (
        'add element ip own steered {\n10.96.0.10 . tcp . 80 comment "shop/web:http" : 12345\n}\n'
        "add element ip own proxy-ports {\ntcp . 12345\n}\n"
    )


def test_service_that_asks_for_the_same_again_is_not_written() -> None:
    """No change is no command."""
    same = {WEB: service(("10.96.0.10:80", 12345), route=RANGED)}
    assert change(same, same) == ""


def test_element_whose_value_changes_is_removed_first() -> None:
    """The kernel does not replace one; in one transaction there is no moment without it."""
    assert change({WEB: service(("10.96.0.10:80", 12345))}, {WEB: service(("10.96.0.10:80", 12346))}) == (
        "delete element ip own steered {\n10.96.0.10 . tcp . 80\n}\n"
        "delete element ip own proxy-ports {\ntcp . 12345\n}\n"
        'add element ip own steered {\n10.96.0.10 . tcp . 80 comment "shop/web:http" : 12346\n}\n'
        "add element ip own proxy-ports {\ntcp . 12346\n}\n"
    )


def test_proxy_port_stays_guarded_while_one_of_two_addresses_goes() -> None:
    """Cluster addresses of a ServicePort share a proxy port."""
    both, one = service(("10.96.0.10:80", 12345), ("10.96.0.11:80", 12345)), service(("10.96.0.11:80", 12345))
    assert change({WEB: both}, {WEB: one}) == "delete element ip own steered {\n10.96.0.10 . tcp . 80\n}\n"


def test_address_moves_from_one_service_to_another_at_once() -> None:
    """In whatever order both are named, it is led to the new proxy port afterwards."""
    content = from_scratch({WEB: service(("10.96.0.10:80", 12345)), DNS: ServiceRules()}, NODE)
    content.replace({DNS: service(("10.96.0.10:80", 12346)), WEB: ServiceRules()}, NODE)
    values = {place: entry.value for place, entry in content.elements}
    assert values["steered", "10.96.0.10 . tcp . 80"] == "12346"
    assert ("proxy-ports", "tcp . 12345") not in values


def test_chain_of_source_ranges_goes_with_the_last_port_that_needs_it() -> None:
    """It is there once for all of them, before the first element and until after the last."""
    first, second = service(("10.96.0.10:80", 12345), route=RANGED), service(("10.96.0.11:80", 12346), route=RANGED)
    content = from_scratch({}, NODE)
    kernel = write(content)
    idle = kernel.listed()
    texts = []
    for changed in ({WEB: first}, {DNS: second}, {WEB: ServiceRules()}, {DNS: ServiceRules()}):
        statements = write_difference(TABLE, content.replace(changed, NODE))
        kernel.run(statements)
        texts.append("".join(statements))
    assert ["add chain" in text for text in texts] == [True, False, False, False]
    assert ["delete chain" in text for text in texts] == [False, False, False, True]
    assert kernel.listed() == idle


@pytest.mark.parametrize(
    ("now", "text"),
    [
        pytest.param(
            Conditions(Surroundings(), ("eth1", "lo"), IPv4Address("10.0.0.1")),
            'delete element ip own addressed {\n"eth0"\n}\nadd element ip own addressed {\n"eth1"\n}\n',
            id="interfaces",
        ),
        pytest.param(
            Conditions(Surroundings(), ("eth0", "lo"), None),
            "add chain ip own prerouting\nflush chain ip own prerouting\n"
            "add rule ip own prerouting iifname @addressed goto steer "
            f'comment "{digest("iifname @addressed goto steer")}"\n',
            id="address of the node",
        ),
        pytest.param(
            Conditions(
                Surroundings((ip_network("fd00:1::/64"),), frozenset({32000})),
                ("eth0", "lo"),
                IPv4Address("10.0.0.1"),
            ),
            "",
            id="what no rule depends on",
        ),
    ],
)
def test_conditions_that_change_are_written_as_what_depends_on_them(now: Conditions, text: str) -> None:
    """Services are not written again."""
    content = from_scratch({WEB: service(("10.96.0.10:80", 12345))}, NODE)
    assert "".join(write_difference(TABLE, content.replace({}, now))) == text


def test_many_elements_are_several_statements_each_with_a_line_per_element() -> None:
    """None is longer than a socket's buffer, and nft's complaints name the line of the element."""
    steered = [(f"10.96.{number // 256}.{number % 256}:80", 12345) for number in range(1200)]
    first, *others = write_all(TABLE, from_scratch({WEB: service(*steered)}, NODE).elements, {})
    assert first.startswith("add table ip own\ndelete table ip own\nadd table ip own\n")
    assert [text.count("\n") for text in others if " steered " in text] == [502, 502, 202]


def test_removal_is_no_error_where_there_is_nothing() -> None:
    """The table is made for it."""
    assert write_removal(TABLE) == "add table ip own\ndelete table ip own\n"


def unlike(listed: Listed, **changed: object) -> Listed:
    """Return a listing that differs in one thing."""
    return Listed(**{**{name: getattr(listed, name) for name in Listed.__annotations__}, **changed})


def test_whatever_is_wrong_with_more_than_elements_takes_the_whole_table() -> None:
    """A table, set, chain, hook or rule that is missing, added or changed cannot be put back by elements."""
    content = from_scratch({WEB: service(("10.96.0.10:80", 12345), route=RANGED)}, NODE)
    listed = write(content).listed()
    assert content.compare(listed) is not None
    rules = dict(listed.rules)
    input_rules = rules["input"]
    wrong = [
        unlike(listed, is_dormant=True),
        unlike(listed, sets=listed.sets - {"addressed"}),
        unlike(listed, hooks={}),
        unlike(listed, rules={**rules, "input": input_rules[1:]}),
        unlike(listed, rules={**rules, "input": (*input_rules[:2], "")}),
        unlike(listed, rules={**rules, "input": input_rules[::-1]}),
        unlike(listed, rules={**rules, "input": ("", *input_rules)}),
        unlike(listed, rules={**rules, "other": ()}),
        unlike(listed, rules={name: found for name, found in rules.items() if name != "refused"}),
    ]
    assert [content.compare(one) for one in (None, *wrong)] == [None] * 10
