"""The example 02-systemd: its unit, as systemd reads it."""

import re
import shutil
import subprocess
from configparser import RawConfigParser, SectionProxy
from pathlib import Path

import pytest

from userspace_proxy.cli import main
from userspace_proxy.config import Config

UNIT = Path(__file__).parents[3] / "examples" / "02-systemd" / "userspace-proxy.service"
INSTALLED = "/usr/local/bin/userspace-proxy"


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@needs_systemd
def test_unit_when_verified_by_systemd_has_no_fault(tmp_path: Path) -> None:
    """Every directive is known and has a value that systemd takes; only the program is looked for elsewhere."""
    assert verify(copy_unit(tmp_path)) == (0, [])


@needs_systemd
def test_worker_user_of_the_readme_when_verified_by_systemd_has_no_fault(tmp_path: Path) -> None:
    """What a user adds names an option that there is, and the capabilities that it takes."""
    (added,) = re.findall(r"(?s)<<'EOF'\n(.*?)\nEOF\n", UNIT.with_name("README.md").read_text())
    unit = copy_unit(tmp_path)
    more = unit.with_name(f"{unit.name}.d") / "worker-user.conf"
    more.parent.mkdir()
    more.write_text(added)
    assert verify(unit) == (0, [])
    settings = read(more)
    name, _, user = settings["Environment"].partition("=")
    (option,) = (one for one in main.commands["run"].params if one.name == "worker_user")
    assert option.envvar == [name]
    assert user
    assert settings["CapabilityBoundingSet"].split() == ["CAP_SETUID", "CAP_SETGID", "CAP_KILL"]
    assert not set(settings["CapabilityBoundingSet"].split()) & set(read(UNIT)["CapabilityBoundingSet"].split())


def test_unit_leaves_the_drain_time_and_what_the_next_start_takes_over() -> None:
    """The manager waits for connections as long as the proxy does, and a restart finds the rules of a killed one."""
    service = read(UNIT)
    assert service["Type"] == "notify"
    drain_timeout_s = Config(state_dir=Path(), runtime_dir=Path()).drain_timeout_s
    assert float(service["TimeoutStopSec"]) > drain_timeout_s
    assert float(service["WatchdogSec"]) > 0
    assert service["Restart"] == "always"
    assert "ExecStopPost" not in service
    assert service["KillMode"] == "mixed", "workers would be told to end, too"


def copy_unit(directory: Path) -> Path:
    """Return a copy of the unit whose program is there."""
    unit = directory / UNIT.name
    assert INSTALLED in UNIT.read_text()
    unit.write_text(UNIT.read_text().replace(INSTALLED, "/usr/bin/env"))
    return unit


def verify(unit: Path) -> tuple[int, list[str]]:
    """Return the exit status of systemd's own check, and what it says of the unit."""
    done = subprocess.run(["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True, timeout=60)
    return done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]


def read(unit: Path) -> SectionProxy:
    """Return the section of a unit that says what runs and how."""
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # the documented way to keep capitals
    parser.read(unit)
    return parser["Service"]
