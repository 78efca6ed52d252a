"""Fixtures for steering: settings with a state directory of the test's own, and fake iptables commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback.steering.fake_commands import FakeCommands

from userspace_proxy.config import Config
from userspace_proxy.model.names import Family


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """Return a function that builds a Config whose state directory is always the same."""

    def make(**settings: Any) -> Config:
        return Config(manifests=(), state_dir=tmp_path / "state", runtime_dir=tmp_path / "run", **settings)

    return make


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
    """Return an otherwise empty PATH, on a node without tables of the legacy variant."""
    fakes = FakeCommands(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(fakes.path))
    monkeypatch.setattr(
        "userspace_proxy.steering.iptables.tool._LEGACY_TABLES", dict.fromkeys(Family, fakes.legacy_tables)
    )
    return fakes
