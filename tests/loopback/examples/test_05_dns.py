"""The example 05-dns, run as its README says, by a user without any right; what differs is the port of the servers."""

import re
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from deadline import DEADLINE_S, wait_until
from loopback.examples.shell import Shell, copy_example, read_commands

_DIAL_IN_README = re.compile(r"@127\.107\.206\.111 -p 10053")
_MISSING = [tool for tool in ("/usr/sbin/nsd", "dig") if shutil.which(tool) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(_MISSING), reason=f"the README uses {', '.join(_MISSING)}")
def test_example_follows_its_readme(home: Path, open_shell: Callable[[str], Shell], port: int) -> None:
    """Every command of the README does what the text beside it says."""
    readme = copy_example("05-dns", home, {"5300": str(port), "#10053": f"#{port}", '"/tmp"': f'"{home}"'})
    start, run, ask, see, see_flow, kill, by_datagram, see_datagrams, stop = read_commands(readme)
    first, second = open_shell("first"), open_shell("second")

    first.run(start)
    wait_until(lambda: _listens("127.90.0.21", port) and _listens("127.90.0.22", port))

    second.type(f"export USERSPACE_PROXY_LOOPBACK_RANGE=127.{112 + port % 100}.0.0/16")
    second.type(f"exec {run}")
    wait_until(lambda: "ready: " in second.output)
    rows = re.search(
        r"SERVICE +FRONTEND +DIAL\n"
        r"default/dns:dns      10\.96\.0\.53:53/UDP  (\S+):10053\n"
        r"default/dns:dns-tcp  10\.96\.0\.53:53/TCP  \1:10053\n"
        r"ready: 1 service, 4 endpoints, 2 listeners, steering loopback, ",
        second.output,
    )
    assert rows, second.output

    def asked(commands: str) -> list[str]:
        return first.run(_DIAL_IN_README.sub(f"@{rows[1]} -p 10053", commands)).splitlines()

    one, two = '"server-1"', '"server-2"'
    assert asked(ask) == ["192.0.2.80", "2001:db8::80"]
    assert asked(see) in ([one, two] * 2, [two, one] * 2)
    assert asked(see_flow) in ([one] * 4, [two] * 4)

    kill, see_one = kill.split("\n", 1)
    first.run(kill)
    wait_until(lambda: not _listens("127.90.0.21", port))
    assert asked(see_one) == [two] * 4

    first.run(by_datagram)
    wait_until(lambda: _listens("127.90.0.21", port))
    wait_until(lambda: asked(see_datagrams) in ([one, two] * 2, [two, one] * 2))

    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(DEADLINE_S) == 0
    first.run(stop)
    wait_until(lambda: not _listens("127.90.0.22", port))
    assert "udp-idle-timeout: 10s" in (home / "examples" / "05-dns" / "dns.yaml").read_text()


def _listens(address: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((address, port)) == 0
