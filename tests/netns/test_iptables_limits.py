"""iptables on nodes where something is missing, and after runs that did not end well."""

from pathlib import Path

import pytest
from netns.command_wrappers import CommandWrappers
from netns.nodes import Node, wait_until
from netns.steering_process import Asked, Driver

pytestmark = pytest.mark.netns

FRONTENDS: list[str | Asked] = ["10.96.0.10:80", "[fd00:96::a]:80", Asked("10.96.0.11:53", protocol="UDP")]
EXTENSIONS = "-m (comment|recent|statistic|addrtype|multiport|mark|set)"
TWO_RIGHTS = "-all,+net_admin,+net_raw"
WITHOUT_RUN = (
    *("sh", "-c", 'mount -t tmpfs -o mode=0555 none /run && exec "$@"', "sh"),
    *("setpriv", f"--inh-caps={TWO_RIGHTS}", f"--bounding-set={TWO_RIGHTS}"),
)
"""Nobody without the right to pass over permissions can make a file in /run; the mount ends with the command."""
RELEASED_LAYOUT = """\
*nat
:USP-PREROUTING - [0:0]
:USP-REDIRECT - [0:0]
:USP-DNAT - [0:0]
-A USP-PREROUTING -i eth0 -g USP-REDIRECT
-A USP-PREROUTING -g USP-DNAT
-A USP-REDIRECT -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 20080
-A USP-REDIRECT -d 10.96.0.11/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 20053
-A USP-DNAT -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:20080
-I PREROUTING -j USP-PREROUTING
-I OUTPUT -j USP-REDIRECT
COMMIT
*filter
:USP-INPUT - [0:0]
:USP-STEERED - [0:0]
:USP-OUTSIDE - [0:0]
:USP-RANGES-0123456789abcdef - [0:0]
-A USP-INPUT -m conntrack --ctstate DNAT -g USP-STEERED
-A USP-STEERED -p tcp -m conntrack --ctorigdst 10.96.0.10 --ctorigdstport 80 -g USP-RANGES-0123456789abcdef
-A USP-RANGES-0123456789abcdef -s 10.0.0.0/8 -g USP-OUTSIDE
-A USP-RANGES-0123456789abcdef -j DROP
-A USP-OUTSIDE -j DROP
-I INPUT -m conntrack --ctstate NEW -j USP-INPUT
COMMIT
"""
"""What the release before rules had buckets has left."""


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_extensions_that_may_be_missing_are_not_needed(node: Node, tmp_path: Path, variant: str) -> None:
    """Kernels that are cut down to little have neither comments nor sets."""
    node.add_foreign_rules(variant)
    commands = CommandWrappers(tmp_path / "bin", refuses=EXTENSIONS)
    driver = Driver(node, tmp_path, "auto", prefix=commands.prefix)
    assert driver.chosen["kind"] == "iptables"
    placed = driver.apply([*FRONTENDS, Asked("203.0.113.20:80", "load-balancer", source_ranges=("10.0.1.0/24",))])
    assert node.outside.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"
    assert node.bare_pod.dial("fd00:96::a", 80) == "[fd00:96::a]:80/TCP"
    assert node.outside.dial("203.0.113.20", 80, timeout_s=0.7) == "TimeoutError"
    port = int(placed["10.96.0.10:80/TCP"].rpartition(":")[2])
    assert node.outside.dial("10.0.0.1", port) == "ConnectionRefusedError"


@pytest.mark.parametrize("missing", ["conntrack", "REJECT", "^[*]filter"])
def test_without_the_means_to_keep_away_services_are_steered_all_the_same(
    node: Node, tmp_path: Path, missing: str
) -> None:
    """It is said, and table filter has nothing of ours."""
    commands = CommandWrappers(tmp_path / "bin", refuses=missing)
    driver = Driver(node, tmp_path, "iptables", prefix=commands.prefix)
    driver.apply(FRONTENDS)
    assert node.outside.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"
    assert node.pod.dial("fd00:96::a", 80) == "[fd00:96::a]:80/TCP"
    assert not [line for line in node.ruleset() if "*filter" in line and "USP-" in line]
    assert any("unknown option" in line for line in driver.chosen["explained"])


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_two_rights_and_no_place_for_the_common_lock_suffice(node: Node, tmp_path: Path, variant: str) -> None:
    """The legacy variant locks a file in the runtime directory then; the nft variant needs none."""
    node.add_foreign_rules(variant)
    runtime_dir = tmp_path / "run"
    driver = Driver(node, runtime_dir, prefix=WITHOUT_RUN)
    assert driver.chosen["kind"] == "iptables"
    driver.apply(FRONTENDS)
    assert (runtime_dir / "xtables.lock").exists() == (variant == "legacy")
    node.run(f"iptables-{variant}", "-t", "nat", "-F", "USP-REDIRECT")
    wait_until(lambda: node.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP")
    assert driver.repairs() == {"IPv4 nat": 1}
    assert driver.terminate() == 0


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize("keeps_state", [True, False])
def test_killed_run_is_taken_over_with_the_same_ports(
    node: Node, tmp_path: Path, variant: str, *, keeps_state: bool
) -> None:
    """By its file, or without it by its rules: the ports are others than a first run would choose here."""
    node.add_foreign_rules(variant)
    first = Driver(node, tmp_path, proxy_ports=(20000, 20004))
    ports = first.apply(FRONTENDS)
    rules = node.ruleset()
    first.kill()
    commands = CommandWrappers(tmp_path / "bin")
    second = Driver(node, tmp_path if keeps_state else tmp_path / "other", prefix=commands.prefix)
    commands.forget()
    assert second.apply(FRONTENDS[::-1]) == ports
    assert node.ruleset() == rules
    assert commands.written(f"iptables-{variant}") == commands.written(f"ip6tables-{variant}") == []
    assert node.pod.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_layout_of_an_earlier_release_is_replaced_and_its_ports_are_kept(
    node: Node, tmp_path: Path, variant: str
) -> None:
    """By one command: no connection meets half of it."""
    node.add_foreign_rules(variant)
    before = node.ruleset()
    node.run(f"iptables-{variant}-restore", "--noflush", text=RELEASED_LAYOUT)
    driver = Driver(node, tmp_path)
    placed = driver.apply(FRONTENDS)
    assert placed["10.96.0.10:80/TCP"] == "0.0.0.0:20080"
    assert placed["10.96.0.11:53/UDP"] == "0.0.0.0:20053"
    assert node.outside.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"
    assert not [line for line in node.ruleset() if "USP-OUTSIDE" in line or "USP-RANGES" in line]
    assert driver.terminate() == 0
    assert node.ruleset() == before
