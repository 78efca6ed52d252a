"""The command line as a user types it: help, options, environment variables, exit statuses, sentences."""

import re
import sys
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import click
import pytest
from cli_driver import UNPRIVILEGED, run_command, service_object, slice_objects, write_manifests

import userspace_proxy
from userspace_proxy.cli import main

COMMANDS: Mapping[str, click.Command] = main.commands
EXAMPLE = re.compile(r"(?m)^    userspace-proxy ", re.MULTILINE)

GIVEN: dict[str, tuple[str, Any]] = {
    "manifests": ("a.yaml:b", (Path("a.yaml"), Path("b"))),
    "steering": ("none", "none"),
    "balance": ("least-connections", "least-connections"),
    "loopback_range": ("127.50.0.0/16", IPv4Network("127.50.0.0/16")),
    "proxy_port_range": ("20000-20999", range(20000, 21000)),
    "state_dir": ("somewhere", Path("somewhere")),
    "dial_next_after": ("0.5", 0.5),
    "dial_timeout": ("5", 5.0),
    "idle_timeout": ("300", 300.0),
    "half_closed_timeout": ("60", 60.0),
    "max_connections": ("99", 99),
    "drain_timeout": ("0", 0.0),
    "metrics_bind_address": ("127.0.0.2:9", (IPv4Address("127.0.0.2"), 9)),
    "bind_address_hard_fail": ("true", True),
    "runtime_dir": ("elsewhere", Path("elsewhere")),
    "log_connections": ("1", True),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "output": ("json", "json"),
    "dry_run": ("yes", True),
    "requests": ("12", 12),
}
"""What an environment variable says for each option, and what the command is to get; none is a default."""


OPTIONS = [
    pytest.param(command, parameter, id=f"{name} {parameter.opts[0]}")
    for name, command in COMMANDS.items()
    for parameter in command.params
    if isinstance(parameter, click.Option)
]
"""Every option of every command."""


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_has_examples_and_fits_a_terminal(name: str, tmp_path: Path) -> None:
    """No line is longer than the 80 columns of a terminal; what to type stands near the top."""
    done = run_command(*name.split(), "--help", cwd=tmp_path, env={"COLUMNS": "80"})
    assert done.returncode == 0
    assert EXAMPLE.search(done.stdout.partition("Options:")[0])
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr == ""


@pytest.mark.parametrize(("command", "parameter"), OPTIONS)
def test_every_option_says_what_it_does(command: click.Command, parameter: click.Option) -> None:
    """A help text is a sentence, in a few words."""
    assert parameter.help
    assert re.fullmatch(r"[A-Z].*\.", parameter.help)


@pytest.mark.parametrize(("command", "parameter"), OPTIONS)
def test_every_option_can_be_an_environment_variable(
    command: click.Command, parameter: click.Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named after the option; a command gets the same as if the option had been given."""
    name = str(parameter.name)
    text, wanted = GIVEN[name]
    with command.make_context("any", [], resilient_parsing=False) as context:
        assert context.params[name] != wanted, "the test proves nothing"
    monkeypatch.setenv(f"USERSPACE_PROXY_{name.upper()}", text)
    with command.make_context("any", []) as context:
        assert context.params[name] == wanted


def test_version_is_said(tmp_path: Path) -> None:
    """By the command as a whole."""
    done = run_command("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"userspace-proxy, version {userspace_proxy.__version__}\n")


def test_command_and_module_are_the_same(tmp_path: Path) -> None:
    """``userspace-proxy`` is what ``python -m userspace_proxy`` is."""
    command = Path(sys.executable).with_name("userspace-proxy")
    done = run_command("--version", cwd=tmp_path, through=("sh", "-c", f"exec {command} --version"))
    assert done.stdout == f"userspace-proxy, version {userspace_proxy.__version__}\n"


def test_settings_in_force_are_all_said(tmp_path: Path) -> None:
    """Wherever they come from: a flag wins over the environment, and that over the default."""
    environ = {f"USERSPACE_PROXY_{name.upper()}": text for name, (text, _) in GIVEN.items()}
    del environ["USERSPACE_PROXY_LOG_FORMAT"]
    done = run_command("run", "--idle-timeout", "7", "c.yaml", cwd=tmp_path, env=environ)
    assert done.stdout.splitlines() == [
        "settings:",
        "  manifests: a.yaml, b, c.yaml",
        "  steering: none",
        "  balance: least-connections",
        "  dial-next-after: 0.5 s",
        "  dial-timeout: 5 s",
        "  idle-timeout: 7 s",
        "  half-closed-timeout: 60 s",
        "  max-connections: 99 per listener",
        "  drain-timeout: 0 s",
        "  loopback-range: 127.50.0.0/16",
        "  proxy-port-range: 20000-20999",
        "  metrics-bind-address: 127.0.0.2:9",
        "  bind-address-hard-fail: on",
        "  state-dir: somewhere",
        "  runtime-dir: elsewhere",
    ]
    assert done.returncode == 3, "a.yaml is not there"
    assert "DEBUG control.main: open files limit" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run"], "Missing option '--manifests'. Name files or directories with Services and EndpointSlices."),
        (["check", "shop.yaml"], "Missing option '--manifests'."),
        (["run", "--manifests"], "Option '--manifests' requires an argument."),
        (["run", "--manifests", "a", "--steering", "magic"], "Invalid value for '--steering': 'magic' is not one of"),
        (["run", "--manifests", "a", "--dial-timeout", "0"], "Invalid value for '--dial-timeout': 0.0 is not in"),
        (["run", "--manifests", "a", "--dial-timeout", "nan"], "Invalid value for '--dial-timeout': "),
        (["run", "--manifests", "a", "--drain-timeout", "inf"], "Invalid value for '--drain-timeout': "),
        (["run", "--manifests", "a", "--max-connections", "0"], "Invalid value for '--max-connections': 0 is not in"),
        (["run", "--manifests", "a", "--proxy-port-range", "9-1"], "'9-1' is no range of ports: write A-B"),
        (["run", "--manifests", "a", "--loopback-range", "10.0.0.0/8"], "10.0.0.0/8 is not within 127.0.0.0/8"),
        (["run", "--manifests", "a", "--loopback-range", "127.1"], "write a network such as 127.96.0.0/12"),
        (["run", "--manifests", "a", "--metrics-bind-address", "10249"], "'10249' is no address to listen on: write"),
        (["run", "--nope"], "No such option"),
        (["nope"], "No such command 'nope'."),
        (["cleanup", "all"], "Got unexpected extra argument (all)"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    """It names the option and what may stand there."""
    done = run_command(*arguments, cwd=tmp_path, env={"COLUMNS": "200"})
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


RUN_HERE = ("run", "--steering", "loopback", "--state-dir", "state", "--metrics-bind-address", "127.0.0.1:0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            [*RUN_HERE, "--runtime-dir", "run", "--manifests", "shop.yaml", "nope"],
            "cannot read manifests from nope: No such file or directory; name a file or directory",
        ),
        (
            [*RUN_HERE, "--runtime-dir", "run", "--manifests", "n\udcffpe"],
            "cannot read manifests from n\\xffpe: No such file or directory; name a file or directory",
        ),
        (
            [*RUN_HERE, "--runtime-dir", "run", "--manifests", "/dev/null"],
            "cannot read manifests from /dev/null: it is neither a file nor a directory",
        ),
        (
            [*RUN_HERE, "--runtime-dir", "shop.yaml/run", "--manifests", "shop.yaml"],
            "the runtime directory shop.yaml/run cannot be used: Not a directory; give another --runtime-dir",
        ),
        (
            ["check", "--steering", "loopback", "--manifests", "nope"],
            "cannot read manifests from nope: No such file or directory; name a file or directory",
        ),
    ],
)
def test_what_is_not_there_is_one_sentence_and_status_3(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    """What, where, why, and what to do."""
    write_manifests(tmp_path / "shop.yaml", [service_object()])
    done = run_command(*arguments, cwd=tmp_path, env={"LC_ALL": "C.UTF-8"})
    assert done.returncode == 3
    assert [line for line in done.stderr.splitlines() if " INFO " not in line] == [f"userspace-proxy: {sentence}"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [("run", "--runtime-dir", "run"), ("check",)])
def test_steering_that_does_not_work_is_one_sentence_and_status_1(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Without the right there is no other kind in its place; what finds one is said."""
    write_manifests(tmp_path / "shop.yaml", [service_object(), *slice_objects("shop/web")])
    done = run_command(
        *command, "--steering", "iptables", "--manifests", "shop.yaml", cwd=tmp_path, through=UNPRIVILEGED
    )
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("userspace-proxy: --steering iptables does not work here: ")
    assert sentence.endswith("; --steering auto finds what does")


def test_cleanup_without_rights_says_so_and_fails(tmp_path: Path) -> None:
    """Not being able to look is not the same as nothing being there; a second time is as good as the first."""
    for _ in range(2):
        done = run_command("cleanup", cwd=tmp_path, through=UNPRIVILEGED)
        assert done.returncode == 1
        assert "not permitted (needs NET_ADMIN)" in done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr


def test_cleanup_without_iptables_has_nothing_to_remove(tmp_path: Path) -> None:
    """Where there is no command there is no rule; it needs neither a cluster nor a state."""
    for arguments in (["cleanup"], ["cleanup", "--dry-run"]):
        done = run_command(*arguments, cwd=tmp_path, env={"PATH": "/nonexistent"})
        assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to remove\n", "")
    assert list(tmp_path.iterdir()) == []
