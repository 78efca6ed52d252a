"""The command line as a user types it: help, options, environment variables, exit statuses, sentences."""

import os
import re
import sys
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import click
import pytest
from cli_driver import UNPRIVILEGED, run_command, service_object, slice_objects, write_manifests

import userspace_proxy
from userspace_proxy.cli import main
from userspace_proxy.config import NodePortAddresses

CONFIG = main.commands["config"]
assert isinstance(CONFIG, click.Group)
COMMANDS: Mapping[str, click.Command] = {
    **main.commands,
    **{f"config {name}": command for name, command in CONFIG.commands.items()},
}
EXAMPLE = re.compile(r"(?m)^    userspace-proxy ", re.MULTILINE)

TWO_NETWORKS = (IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/16"))
GIVEN: dict[str, tuple[str, Any]] = {
    "manifests": ("a.yaml:b", (Path("a.yaml"), Path("b"))),
    "kubeconfig": ("admin.conf", "admin.conf"),
    "kube_context": ("here", "here"),
    "api_server": ("https://10.0.0.1:6443/", "https://10.0.0.1:6443"),
    "service_proxy_name": ("ours", "ours"),
    "hostname_override": (" Node-1 ", "node-1"),
    "cluster_cidr": ("10.244.0.0/16,fd00::/56", (IPv4Network("10.244.0.0/16"), IPv6Network("fd00::/56"))),
    "detect_local_mode": ("NodeCIDR", "NodeCIDR"),
    "nodeport_addresses": ("10.1.0.0/16, 10.2.0.0/16", NodePortAddresses(TWO_NETWORKS)),
    "external_ips": ("false", False),
    "config": ("/dev/null", Path("/dev/null")),
    "healthz_bind_address": ("127.0.0.2:8", (IPv4Address("127.0.0.2"), 8)),
    "steering": ("none", "none"),
    "balance": ("least-connections", "least-connections"),
    "service_cidr": ("10.96.0.0/12,fd00:96::/112", (IPv4Network("10.96.0.0/12"), IPv6Network("fd00:96::/112"))),
    "hosts_file": ("hosts", Path("hosts")),
    "kube_proxy_leftovers": ("1", True),
    "loopback_range": ("127.50.0.0/16", IPv4Network("127.50.0.0/16")),
    "proxy_port_range": ("20000-20999", range(20000, 21000)),
    "state_dir": ("somewhere", Path("somewhere")),
    "dial_next_after": ("0.5", 0.5),
    "dial_timeout": ("5", 5.0),
    "idle_timeout": ("300", 300.0),
    "half_closed_timeout": ("60", 60.0),
    "max_connections": ("99", 99),
    "drain_timeout": ("0", 0.0),
    "udp_idle_timeout": ("90.5", 90.5),
    "udp_max_flows": ("77", 77),
    "udp_max_total_flows": ("888", 888),
    "workers": ("3", 3),
    "worker_user": (str(os.geteuid()), str(os.geteuid())),
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
    assert EXAMPLE.search(re.split(r"(?m)^\S.*:$", done.stdout)[0])
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
    not_here = ("log_format", "config", "kubeconfig", "kube_context", "api_server", "service_proxy_name")
    environ = {f"USERSPACE_PROXY_{name.upper()}": text for name, (text, _) in GIVEN.items() if name not in not_here}
    done = run_command("run", "--idle-timeout", "7", "c.yaml", cwd=tmp_path, env=environ)
    assert done.stdout.splitlines() == [
        "settings:",
        "  manifests: a.yaml, b, c.yaml",
        "  hostname-override: node-1",
        "  cluster-cidr: 10.244.0.0/16,fd00::/56",
        "  detect-local-mode: NodeCIDR",
        "  nodeport-addresses: 10.1.0.0/16,10.2.0.0/16",
        "  external-ips: off",
        "  steering: none",
        "  service-cidr: 10.96.0.0/12,fd00:96::/112",
        "  hosts-file: hosts",
        "  balance: least-connections",
        "  dial-next-after: 0.5 s",
        "  dial-timeout: 5 s",
        "  idle-timeout: 7 s",
        "  half-closed-timeout: 60 s",
        "  max-connections: 99 per listener",
        "  drain-timeout: 0 s",
        "  udp-idle-timeout: 90.5 s",
        "  udp-max-flows: 77 per listener",
        "  udp-max-total-flows: 888",
        "  workers: 3",
        f"  worker-user: {os.geteuid()}",
        "  loopback-range: 127.50.0.0/16",
        "  proxy-port-range: 20000-20999",
        "  metrics-bind-address: 127.0.0.2:9",
        "  healthz-bind-address: 127.0.0.2:8",
        "  bind-address-hard-fail: on",
        "  state-dir: somewhere",
        "  runtime-dir: elsewhere",
    ]
    assert done.returncode == 3, "a.yaml is not there"
    assert "DEBUG control.main: open files limit" in done.stderr


NO_SOURCE = "No source of Services: name files or directories with --manifests, or the API server with --kubeconfig."


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run"], NO_SOURCE),
        (["check"], NO_SOURCE),
        (["run", "--service-proxy-name", "ours"], NO_SOURCE),
        (["check", "shop.yaml"], "Missing option '--manifests' before 'shop.yaml'."),
        (["run", "--kubeconfig", "k", "shop.yaml"], "Missing option '--manifests' before 'shop.yaml'."),
        (["run", "--manifests", "a", "--kubeconfig", "k"], "--manifests and --kubeconfig name two sources of Services"),
        (["run", "--manifests", "a", "--master", "http://k"], "--manifests and --api-server name two sources"),
        (["run", "--manifests", "a", "--service-proxy-name", "k"], "--manifests and --service-proxy-name name two"),
        (["run", "--api-server", "10.0.0.1"], "'10.0.0.1' is no URL of an API server: write https://"),
        (["run", "--service-proxy-name", "-x"], "'-x' is no value of a label: at most 63"),
        (["run", "--hostname-override", " "], "'--hostname-override': the name of the node must not be blank"),
        (["run", "--cluster-cidr", "10.0.0.0"], "'--cluster-cidr': '10.0.0.0' is no network: write 10.244.0.0/16"),
        (["run", "--cluster-cidr", "10.1.0.0/16,10.2.0.0/16"], "has two networks of the same family"),
        (
            ["run", "--detect-local-mode", "BridgeInterface"],
            "'BridgeInterface' is not one of 'ClusterCIDR', 'NodeCIDR'",
        ),
        (["run", "--nodeport-addresses", "first"], "'first' is no network: write 10.244.0.0/16 or"),
        (["run", "--nodeport-addresses", "all", "--nodeport-addresses", "primary"], "'primary' stands alone"),
        (["run", "--healthz-bind-address", "10256"], "'10256' is no address to listen on: write"),
        (["run", "--proxy-mode", "iptables"], "No such option"),
        (["run", "--manifests"], "Option '--manifests' requires an argument."),
        (["run", "--manifests", "a", "--steering", "magic"], "Invalid value for '--steering': 'magic' is not one of"),
        (["run", "--manifests", "a", "--dial-timeout", "0"], "Invalid value for '--dial-timeout': 0.0 is not in"),
        (["run", "--manifests", "a", "--dial-timeout", "nan"], "Invalid value for '--dial-timeout': "),
        (["run", "--manifests", "a", "--drain-timeout", "inf"], "Invalid value for '--drain-timeout': "),
        (["run", "--manifests", "a", "--max-connections", "0"], "Invalid value for '--max-connections': 0 is not in"),
        (["run", "--manifests", "a", "--udp-idle-timeout", "0"], "Invalid value for '--udp-idle-timeout': 0.0 is not"),
        (["run", "--manifests", "a", "--udp-idle-timeout", "90s"], "Invalid value for '--udp-idle-timeout': '90s' is"),
        (["run", "--manifests", "a", "--udp-max-flows", "0"], "Invalid value for '--udp-max-flows': 0 is not in"),
        (["run", "--manifests", "a", "--udp-max-total-flows", "-1"], "'--udp-max-total-flows': -1 is not in the range"),
        (["run", "--manifests", "a", "--proxy-port-range", "9-1"], "'9-1' is no range of ports: write A-B"),
        (["run", "--manifests", "a", "--loopback-range", "10.0.0.0/8"], "10.0.0.0/8 is not within 127.0.0.0/8"),
        (["run", "--manifests", "a", "--loopback-range", "127.1"], "write a network such as 127.96.0.0/12"),
        (["run", "--manifests", "a", "--metrics-bind-address", "10249"], "'10249' is no address to listen on: write"),
        (["run", "--manifests", "a", "--workers", "-1"], "Invalid value for '--workers': -1 is not in the range"),
        (["run", "--manifests", "a", "--workers", "65"], "Invalid value for '--workers': 65 is not in the range"),
        (["run", "--manifests", "a", "--workers", "two"], "Invalid value for '--workers': 'two' is not a valid"),
        (["run", "--manifests", "a", "--worker-user", " "], "'--worker-user': the user of the workers must not be bl"),
        (["run", "--manifests", "a", "--worker-user=-1"], "'--worker-user': '-1' is no number of a user: write one"),
        (["run", "--manifests", "a", "--workers", "0", "--worker-user", "1"], "--workers 0 leaves nobody to run as"),
        (["run", "--nope"], "No such option"),
        (["nope"], "No such command 'nope'."),
        (["cleanup", "all"], "Got unexpected extra argument (all)"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    """It names the option and what may stand there."""
    done = run_command(*arguments, cwd=tmp_path, env={"COLUMNS": "200", "KUBERNETES_SERVICE_HOST": ""})
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


OWN_DOCUMENT = b"apiVersion: userspace-proxy.io/v1alpha1\nkind: UserspaceProxyConfiguration\n"
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


def test_cleanup_removes_names_from_a_hosts_file(tmp_path: Path) -> None:
    """What is left of a killed run, and nothing else; what makes no sense is told and left alone."""
    block = "# BEGIN userspace-proxy\n10.96.0.10 web\n# END userspace-proxy\n"
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{block}")
    environ = {"PATH": "/nonexistent", "USERSPACE_PROXY_HOSTS_FILE": "hosts"}
    done = run_command("cleanup", "--dry-run", cwd=tmp_path, env=environ)
    assert (done.returncode, done.stdout) == (0, "would remove hosts file hosts: our block\n")
    assert block in hosts.read_text()
    done = run_command("cleanup", cwd=tmp_path, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "removed hosts file hosts: our block\n", "")
    assert hosts.read_text() == "127.0.0.1 localhost\n"
    assert run_command("cleanup", cwd=tmp_path, env=environ).stdout == "nothing to remove\n"
    hosts.write_text(f"{block}{block}")
    done = run_command("cleanup", cwd=tmp_path, env=environ)
    assert done.returncode == 1
    assert done.stderr.startswith("userspace-proxy: not removed: the hosts file hosts is left alone: line 1, ")
    assert hosts.read_text() == f"{block}{block}"


@pytest.mark.slow
def test_config_file_is_used_and_commented_on_in_the_log(tmp_path: Path) -> None:
    """What kube-proxy's file has without a meaning here is one line; what may be a mistake is a warning."""
    (tmp_path / "proxy.yaml").write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n"
        "metricsBindAddress: 127.0.0.3\nipvs: {strictARP: true}\nportRnge: 5-6\n---\n"
        "apiVersion: userspace-proxy.io/v1alpha1\nkind: UserspaceProxyConfiguration\nmanifests: [nope]\n"
        "steering: none\n"
    )
    done = run_command("run", "--config", "proxy.yaml", "--runtime-dir", "run", "--state-dir", "state", cwd=tmp_path)
    assert done.returncode == 3, "nope is not there"
    assert {"  manifests: nope", "  steering: none", "  metrics-bind-address: 127.0.0.3:10249"} <= set(
        done.stdout.splitlines()
    )
    said = [line.partition(" cli.commands: ")[2] for line in done.stderr.splitlines() if " cli.commands: " in line]
    assert said == [
        "proxy.yaml: not strictly a KubeProxyConfiguration: ignored as unknown: portRnge (line 6)",
        "proxy.yaml: mode 'ipvs' selects nothing here: the option --steering (or the key steering) does",
        "proxy.yaml: of kube-proxy's settings these have no effect here: ipvs.strictARP (line 5)",
    ]
    levels = [line.split(" cli.commands: ")[0].split()[-1] for line in done.stderr.splitlines() if " cli.com" in line]
    assert levels == ["WARNING", "WARNING", "INFO"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot read the configuration file proxy.yaml: No such file or directory; name a file for --config"),
        (b"\xff", "cannot read the configuration file proxy.yaml: invalid start byte in UTF-8"),
        (
            b"a: [",
            "proxy.yaml:1: not YAML: while parsing a flow node, expected the node content, but found '<stream end>'",
        ),
        (
            OWN_DOCUMENT + b"dialTimeout: -1\n",
            "proxy.yaml:3: dialTimeout cannot be used: -1.0 is not in the range x>0.",
        ),
        (
            OWN_DOCUMENT + b"manifests: [a]\nkubeContext: b\n",
            "proxy.yaml: --manifests and --kube-context name two sources of Services: give one of them.",
        ),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_config_file_that_is_of_no_use_is_one_sentence_and_status_3(
    tmp_path: Path, command: str, text: bytes | None, sentence: str
) -> None:
    """The file, and the line and key in it where there are such; for a command that has not all options of run, too."""
    if text is not None:
        (tmp_path / "proxy.yaml").write_bytes(text)
    done = run_command(command, cwd=tmp_path, env={"USERSPACE_PROXY_CONFIG": "proxy.yaml"})
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"userspace-proxy: {sentence}\n")
