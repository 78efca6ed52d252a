"""The example 02-systemd: its unit, as systemd reads it."""

import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from userspace_proxy.config import Config

UNIT = Path(__file__).parents[3] / "examples" / "02-systemd" / "userspace-proxy.service"
INSTALLED = "/usr/local/bin/userspace-proxy"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_unit_when_verified_by_systemd_has_no_fault(tmp_path: Path) -> None:
    """Every directive is known and has a value that systemd takes; only the program is looked for elsewhere."""
    unit = tmp_path / UNIT.name
    assert INSTALLED in UNIT.read_text()
    unit.write_text(UNIT.read_text().replace(INSTALLED, "/usr/bin/env"))
    done = subprocess.run(["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True, timeout=60)
    about_it = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, about_it) == (0, [])


def test_unit_leaves_the_drain_time_and_what_the_next_start_takes_over() -> None:
    """The manager waits for connections as long as the proxy does, and a restart finds the rules of a killed one."""
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # the documented way to keep capitals
    unit.read(UNIT)
    service = unit["Service"]
    assert service["Type"] == "notify"
    drain_timeout_s = Config(state_dir=Path(), runtime_dir=Path()).drain_timeout_s
    assert float(service["TimeoutStopSec"]) > drain_timeout_s
    assert float(service["WatchdogSec"]) > 0
    assert service["Restart"] == "always"
    assert "ExecStopPost" not in service
