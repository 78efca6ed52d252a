"""Tests of what options, environment and configuration file mean together, on the command as click runs it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from userspace_proxy.cli import main
from userspace_proxy.cli.config_file import default_file_lines, load_config_file
from userspace_proxy.cli.settings import build_config
from userspace_proxy.config import (
    HEALTHZ_BIND_ADDRESS,
    METRICS_BIND_ADDRESS,
    ApiAccess,
    Config,
    DetectLocalMode,
    FlowLimits,
    NodePortAddresses,
    RelayLimits,
    SteeringKind,
)
from userspace_proxy.config_file.kube_proxy_keys import APPLIED
from userspace_proxy.errors import ConfigError

RUN, CHECK = main.commands["run"], main.commands["check"]
OWN = "apiVersion: userspace-proxy.io/v1alpha1\nkind: UserspaceProxyConfiguration\n"
KUBE_PROXY = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
API = ("--kubeconfig", "admin.conf")
FILES = ("--manifests", "shop.yaml")


@pytest.fixture(autouse=True)
def _no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing of where the tests run get in."""
    for name in ("KUBERNETES_SERVICE_HOST", "NODE_NAME", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def context_of(*arguments: str, command: click.Command = RUN) -> Iterator[click.Context]:
    """Yield the context of a command with these arguments."""
    with command.make_context("any", list(arguments)) as context:
        yield context


def config_of(*arguments: str, command: click.Command = RUN) -> Config:
    """Return the configuration of a command with these arguments."""
    with context_of(*arguments, command=command) as context:
        return build_config(context)


def written(path: Path, text: str) -> tuple[str, str]:
    """Write a configuration file and return the option that names it."""
    path.write_text(text)
    return ("--config", str(path))


def test_every_option_of_an_api_server_is_in_the_config() -> None:
    """As the first users will type it."""
    config = config_of(
        *("--kubeconfig", "/etc/k.conf", "--kube-context", "prod", "--api-server", "https://10.0.0.1:6443"),
        *("--service-proxy-name", "ours", "--hostname-override", "Node-1", "--cluster-cidr", "10.244.0.0/16,fd00::/56"),
        *("--detect-local-mode", "NodeCIDR", "--nodeport-addresses", "10.0.0.0/8", "--nodeport-addresses", "localhost"),
        *("--no-external-ips", "--healthz-bind-address", "10.0.0.9:1"),
    )
    assert config.manifests == ()
    assert config.api == ApiAccess(Path("/etc/k.conf"), "prod", "https://10.0.0.1:6443", "ours")
    assert config.node_name == "node-1"
    assert config.cluster_cidrs == (ip_network("10.244.0.0/16"), ip_network("fd00::/56"))
    assert config.detect_local_mode is DetectLocalMode.NODE_CIDR
    assert config.node_port_addresses == NodePortAddresses(
        (ip_network("10.0.0.0/8"), ip_network("127.0.0.0/8"), ip_network("::1/128"))
    )
    assert not config.serves_external_ips
    assert config.healthz_bind_address == (ip_address("10.0.0.9"), 1)


def test_every_option_of_steering_is_in_the_config() -> None:
    """``check`` writes no names anywhere, and so has no option for them."""
    given = ("--steering", "local-route", "--service-cidr", "10.96.0.0/12,fd00::/112")
    config = config_of(*API, *given, "--hosts-file", "/etc/hosts")
    assert config.steering is SteeringKind.LOCAL_ROUTE
    assert config.service_cidrs == (ip_network("10.96.0.0/12"), ip_network("fd00::/112"))
    assert config.hosts_file == Path("/etc/hosts")
    checked = config_of(*API, *given, command=CHECK)
    assert (checked.service_cidrs, checked.hosts_file) == (config.service_cidrs, None)


def test_own_keys_of_steering_are_in_the_config(tmp_path: Path) -> None:
    """Written as Kubernetes writes CIDR."""
    file = written(tmp_path / "c", f"{OWN}steering: nftables\nserviceCIDR: 10.96.0.0/12\nhostsFile: /etc/hosts\n")
    config = config_of(*API, *file)
    assert config.steering is SteeringKind.NFTABLES
    assert (config.service_cidrs, config.hosts_file) == ((ip_network("10.96.0.0/12"),), Path("/etc/hosts"))


def test_every_option_of_udp_is_in_the_config() -> None:
    """In the fields that bound flows, and in no other."""
    config = config_of(*API, "--udp-idle-timeout", "0.5", "--udp-max-flows", "7", "--udp-max-total-flows", "9")
    assert config.flow_limits == FlowLimits(idle_timeout_s=0.5, max_flows=7, max_total_flows=9)
    assert config.limits == RelayLimits()


def test_every_option_of_workers_is_in_the_config(tmp_path: Path) -> None:
    """``check`` starts none, and so has no option for them; a file may name them all the same."""
    config = config_of(*API, "--workers", "3", "--worker-user", " proxy ")
    assert (config.workers, config.worker_user) == (3, "proxy")
    assert config_of(*API, "--workers", "0").workers == 0
    file = written(tmp_path / "f", f"{OWN}workers: 2\nworkerUser: '65534'\n")
    config = config_of(*API, *file)
    assert (config.workers, config.worker_user) == (2, "65534")
    checked = config_of(*API, *file, command=CHECK)
    assert (checked.workers, checked.worker_user) == (None, "")


def test_user_of_no_worker_is_refused(tmp_path: Path) -> None:
    """Who names a user wants less rights, which is not what a single process has; a wrong file is named."""
    with pytest.raises(click.UsageError, match="--workers 0 leaves nobody to run as --worker-user"):
        config_of(*API, "--workers", "0", "--worker-user", "proxy")
    file = written(tmp_path / "f", f"{OWN}workers: 0\nworkerUser: proxy\n")
    with pytest.raises(ConfigError, match="f: --workers 0 leaves nobody to run as --worker-user"):
        config_of(*API, *file)
    with pytest.raises(click.UsageError, match="--workers 0 leaves"):
        config_of(*API, *file, "--workers", "0")
    assert config_of(*API, *file, "--workers", "1").worker_user == "proxy"


def test_defaults_are_those_of_the_config() -> None:
    """There is one place with defaults; only what the machine decides differs."""
    config = config_of(*API, "--hostname-override", "n")
    assert config == Config(
        config.state_dir,
        config.runtime_dir,
        api=ApiAccess(Path("admin.conf")),
        node_name="n",
        healthz_bind_address=HEALTHZ_BIND_ADDRESS,
    )


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        (FILES, {}, (True, ApiAccess())),
        (API, {}, (False, ApiAccess(Path("admin.conf")))),
        (("--master", "http://127.0.0.1:8001"), {}, (False, ApiAccess(server="http://127.0.0.1:8001"))),
        ((), {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, (False, ApiAccess())),
        (("--kubeconfig", ""), {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, (False, ApiAccess())),
        (FILES, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, (True, ApiAccess())),
        (FILES, {"USERSPACE_PROXY_KUBECONFIG": "e.conf"}, (True, ApiAccess())),
        (API, {"USERSPACE_PROXY_MANIFESTS": "e.yaml"}, (False, ApiAccess(Path("admin.conf")))),
        ((), {"USERSPACE_PROXY_KUBECONFIG": "e.conf"}, (False, ApiAccess(Path("e.conf")))),
    ],
)
@pytest.mark.parametrize("command", [RUN, CHECK], ids=["run", "check"])
def test_source_is_manifests_or_an_api_server(
    monkeypatch: pytest.MonkeyPatch,
    command: click.Command,
    arguments: tuple[str, ...],
    environ: Mapping[str, str],
    expected: tuple[bool, ApiAccess],
) -> None:
    """What is nearer to the command line wins; a pod's service account is the last."""
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    config = config_of(*arguments, command=command)
    assert (bool(config.manifests), config.api) == expected


def test_source_named_twice_in_one_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line and in the environment it is wrong usage, in the file a wrong file."""
    with pytest.raises(click.UsageError, match="--manifests and --kubeconfig name two sources of Services"):
        config_of(*FILES, *API)
    file = written(tmp_path / "f", f"{OWN}manifests: [a]\napiServer: https://a\n")
    with pytest.raises(ConfigError, match="f: --manifests and --api-server name two sources of Services"):
        config_of(*file)
    assert config_of(*file, *FILES).manifests == (Path("shop.yaml"),)
    assert config_of(*file, *API).api.kubeconfig == Path("admin.conf")
    monkeypatch.setenv("USERSPACE_PROXY_MANIFESTS", "a")
    monkeypatch.setenv("USERSPACE_PROXY_SERVICE_PROXY_NAME", "b")
    with pytest.raises(click.UsageError, match="--manifests and --service-proxy-name name two sources"):
        config_of()


def test_manifests_that_follow_those_of_the_environment_make_them_as_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who adds one on the command line means manifests."""
    monkeypatch.setenv("USERSPACE_PROXY_MANIFESTS", "a")
    monkeypatch.setenv("USERSPACE_PROXY_KUBECONFIG", "k")
    assert config_of("b").manifests == (Path("a"), Path("b"))
    with pytest.raises(click.UsageError, match="name two sources"):
        config_of("b", *API)


def test_source_that_nobody_names_is_refused() -> None:
    """The sentence names both."""
    with pytest.raises(click.UsageError, match=r"with --manifests, or the API server with --kubeconfig"):
        config_of()


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        (("--hostname-override", " Flag "), {"USERSPACE_PROXY_HOSTNAME_OVERRIDE": "Ours", "NODE_NAME": "Pod"}, "flag"),
        ((), {"USERSPACE_PROXY_HOSTNAME_OVERRIDE": "Ours", "NODE_NAME": "Pod"}, "ours"),
        ((), {"NODE_NAME": "Pod"}, "pod"),
        ((), {}, "file"),
        ((), {"USERSPACE_PROXY_HOSTNAME_OVERRIDE": "", "NODE_NAME": ""}, "file"),
    ],
)
def test_h_10_node_name_comes_from_the_nearest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    environ: Mapping[str, str],
    expected: str,
) -> None:
    """The option, the environment, the file; trimmed and in lower case."""
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    file = written(tmp_path / "f", f"{KUBE_PROXY}hostnameOverride: ' File '\n")
    assert config_of(*API, *options, *file).node_name == expected


def test_h_10_node_name_is_else_that_of_the_host() -> None:
    """In lower case; with manifests too."""
    host = Path("/proc/sys/kernel/hostname").read_text().strip().lower()
    assert config_of(*API).node_name == host
    assert config_of(*FILES).node_name == host


def test_h_10_node_name_that_is_blank_is_refused(tmp_path: Path) -> None:
    """It is a mistake in a template, not a wish for the default."""
    with pytest.raises(click.BadParameter, match="must not be blank"):
        config_of(*API, "--hostname-override", " ")
    assert refusal(tmp_path, KUBE_PROXY + "hostnameOverride: ' '\n") == (
        "3: hostnameOverride cannot be used: the name of the node must not be blank"
    )


def test_healthz_is_open_to_the_world_only_if_asked_for_or_on_a_node(tmp_path: Path) -> None:
    """Developers with manifests get no port unasked; a node of a cluster is where kube-proxy's is looked for."""
    assert config_of(*API).healthz_bind_address == HEALTHZ_BIND_ADDRESS
    assert config_of(*API, "--healthz-bind-address", "").healthz_bind_address is None
    assert config_of(*FILES).healthz_bind_address is None
    asked = config_of(*FILES, "--healthz-bind-address", "127.0.0.1:10256")
    assert asked.healthz_bind_address == (ip_address("127.0.0.1"), 10256)
    file = written(tmp_path / "f", KUBE_PROXY + "healthzBindAddress: 0.0.0.0\n")
    assert config_of(*FILES, *file).healthz_bind_address == HEALTHZ_BIND_ADDRESS
    assert config_of(*FILES, command=CHECK).healthz_bind_address is None


def test_empty_variable_of_an_address_to_listen_on_means_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the empty option does; for other options it is no value."""
    for name in ("METRICS_BIND_ADDRESS", "HEALTHZ_BIND_ADDRESS", "STEERING", "STATE_DIR"):
        monkeypatch.setenv(f"USERSPACE_PROXY_{name}", "")
    config = config_of(*API)
    assert (config.metrics_bind_address, config.healthz_bind_address) == (None, None)
    assert config.steering == "auto"


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For keys of both documents."""
    file = written(tmp_path / "f", f"{OWN}dialTimeout: 5\n---\n{KUBE_PROXY}metricsBindAddress: 127.0.0.1:5\n")

    def found(*arguments: str) -> tuple[float, int]:
        config = config_of(*API, *arguments)
        assert config.metrics_bind_address is not None
        return config.limits.dial_timeout_s, config.metrics_bind_address[1]

    assert found() == (2.0, METRICS_BIND_ADDRESS[1])
    assert found(*file) == (5.0, 5)
    monkeypatch.setenv("USERSPACE_PROXY_DIAL_TIMEOUT", "6")
    monkeypatch.setenv("USERSPACE_PROXY_METRICS_BIND_ADDRESS", "127.0.0.1:6")
    assert found(*file) == (6.0, 6)
    assert found("--dial-timeout", "7", "--metrics-bind-address", "127.0.0.1:7", *file) == (7.0, 7)
    monkeypatch.setenv("USERSPACE_PROXY_CONFIG", file[1])
    monkeypatch.delenv("USERSPACE_PROXY_DIAL_TIMEOUT")
    assert found() == (5.0, 6)


def test_config_file_can_set_everything(tmp_path: Path) -> None:
    """Each kind of value gets to its field."""
    file = written(
        tmp_path / "f",
        f"{KUBE_PROXY}clientConnection: {{kubeconfig: k.conf}}\nclusterCIDR: 10.244.0.0/16\nportRange: 20000-20999\n"
        f"nodePortAddresses: [primary]\nbindAddressHardFail: true\n---\n{OWN}steering: loopback\nmaxConnections: 9\n"
        "externalIPs: false\nloopbackRange: 127.50.0.0/16\nstateDir: here\nserviceProxyName: ours\nidleTimeout: 1.5\n"
        'metricsBindAddress: ""\nudpIdleTimeout: 0.5\nudpMaxFlows: 7\nudpMaxTotalFlows: 9\n',
    )
    config = config_of(*file)
    assert config.api == ApiAccess(Path("k.conf"), service_proxy_name="ours")
    assert config.cluster_cidrs == (ip_network("10.244.0.0/16"),)
    assert config.proxy_port_range == range(20000, 21000)
    assert config.node_port_addresses == NodePortAddresses(is_primary=True)
    assert config.bind_address_hard_fail
    assert config.steering == "loopback"
    assert (config.limits.max_connections, config.limits.idle_timeout_s) == (9, 1.5)
    assert config.flow_limits == FlowLimits(idle_timeout_s=0.5, max_flows=7, max_total_flows=9)
    assert not config.serves_external_ips
    assert config.loopback_range == ip_network("127.50.0.0/16")
    assert config.state_dir == Path("here")
    assert config.metrics_bind_address is None


@pytest.mark.parametrize(("duration", "idle_timeout_s"), [("1m30s", 90.0), ("250ms", 60.0), ("0s", 60.0)])
def test_udp_idle_timeout_of_kube_proxy_applies_unless_it_is_its_default(
    tmp_path: Path, duration: str, idle_timeout_s: float
) -> None:
    """A file with 250 ms was dumped with all defaults: nobody wants UDP answers cut off."""
    file = written(tmp_path / "f", f"{KUBE_PROXY}udpIdleTimeout: {duration}\n")
    assert config_of(*API, *file).flow_limits.idle_timeout_s == idle_timeout_s
    assert config_of(*API, *file, "--udp-idle-timeout", "7").flow_limits.idle_timeout_s == 7


def refusal(directory: Path, text: str) -> str:
    """Return why ``run`` refuses a configuration file, without the name of that."""
    path = directory / "f"
    path.write_text(text)
    with context_of(*API) as context, pytest.raises(ConfigError) as caught:
        load_config_file(context, path, RUN.params)
    return str(caught.value).removeprefix(f"{path}:")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (OWN + "steering: magic", "3: steering cannot be used: 'magic' is not one of 'auto', 'iptables'"),
        (OWN + "dialTimeout: 0", "3: dialTimeout cannot be used: 0.0 is not in the range x>0"),
        (OWN + "dialTimeout: .inf", "3: dialTimeout cannot be used: inf is no number of seconds"),
        (OWN + "maxConnections: 0", "3: maxConnections cannot be used: 0 is not in the range x>=1"),
        (OWN + "udpIdleTimeout: 0", "3: udpIdleTimeout cannot be used: 0.0 is not in the range x>0"),
        (OWN + "udpIdleTimeout: 90s", "3: udpIdleTimeout must be a number, not '90s'"),
        (OWN + "udpMaxFlows: 0", "3: udpMaxFlows cannot be used: 0 is not in the range x>=1"),
        (OWN + "udpMaxTotalFlows: 0", "3: udpMaxTotalFlows cannot be used: 0 is not in the range x>=1"),
        (
            f"{OWN}udpIdleTimeout: 9\n---\n{KUBE_PROXY}udpIdleTimeout: 9s",
            "3: udpIdleTimeout says again what udpIdleTimeout (line 7) says; remove one of them",
        ),
        (OWN + "workers: 65", "3: workers cannot be used: 65 is not in the range 0<=x<=64"),
        (OWN + "workers: auto", "3: workers must be a whole number, not 'auto'"),
        (OWN + "workerUser: 65534", "3: workerUser must be a text, not 65534 (put it in quotes)"),
        (OWN + "workerUser: ' '", "3: workerUser cannot be used: the user of the workers must not be blank"),
        (OWN + "dialTimout: 1", "3: dialTimout is no key of UserspaceProxyConfiguration; the nearest is dialTimeout"),
        (
            OWN + "externalips: true",
            "3: externalips is no key of UserspaceProxyConfiguration; the nearest is externalIPs",
        ),
        (OWN + "config: other.yaml", "3: config is no key of UserspaceProxyConfiguration; "),
        (OWN + "help: true", "3: help is no key of UserspaceProxyConfiguration; "),
        (
            KUBE_PROXY + "clusterCIDR: 10.1.0.0/16,10.2.0.0/16",
            "3: clusterCIDR cannot be used: '10.1.0.0/16,10.2.0.0/16' has",
        ),
        (
            KUBE_PROXY + "nodePortAddresses: [all, primary]",
            "3: nodePortAddresses cannot be used: 'primary' stands alone",
        ),
        (KUBE_PROXY + "portRange: 9-1", "3: portRange cannot be used: '9-1' is no range of ports"),
        (KUBE_PROXY + "metricsBindAddress: here:1", "3: metricsBindAddress cannot be used: 'here:1' is no address"),
    ],
)
def test_value_in_the_file_that_its_option_refuses_is_told_with_its_place(
    tmp_path: Path, text: str, sentence: str
) -> None:
    """By the same words as on the command line."""
    assert refusal(tmp_path, text).startswith(sentence)


@pytest.mark.parametrize("source", [API, FILES])
@pytest.mark.parametrize("command", [RUN, CHECK], ids=["run", "check"])
def test_default_file_changes_nothing(tmp_path: Path, command: click.Command, source: tuple[str, ...]) -> None:
    """What ``config default`` prints is accepted as it is, without any word in the log."""
    printed = CliRunner().invoke(main, ["config", "default"])
    assert printed.exit_code == 0
    file = written(tmp_path / "f", printed.stdout)
    with context_of(*source, *file, command=command) as context:
        assert (context.obj.warnings, context.obj.remarks) == ((), ())
        assert build_config(context) == config_of(*source, command=command)


def test_default_file_has_every_option_once_with_a_comment() -> None:
    """A new option of ``run`` is in it by itself; a comment stands above each key."""
    lines = list(default_file_lines(RUN.params))
    keys = {line.partition(":")[0].strip() for line in lines if ":" in line and not line.lstrip().startswith("#")}
    head = {"apiVersion", "kind", "clientConnection"}
    options = [
        option for option in RUN.params if isinstance(option, click.Option) and option.name not in ("config", "help")
    ]
    assert len(keys - head) == len(options)
    assert keys >= {
        "externalIPs",
        "nodePortAddresses",
        "clusterCIDR",
        "serviceProxyName",
        "dialNextAfter",
        "kubeconfig",
    }
    for above, line in pairwise(lines):
        key = line.partition(":")[0].strip()
        assert key not in keys - head or above.lstrip().startswith("# ")
    assert max(map(len, lines)) <= 98


def test_default_file_has_addresses_to_listen_on_where_an_empty_text_means_nowhere() -> None:
    """As their comments say; to kube-proxy it means the default."""
    lines = list(default_file_lines(RUN.params))
    second = lines[lines.index("---") :]
    assert {"healthzBindAddress: null", 'metricsBindAddress: "127.0.0.1:10249"'} <= set(second)


def test_default_file_has_the_idle_time_out_of_udp_among_our_own_settings() -> None:
    """In seconds: a newer kube-proxy that reads the same file would warn of a key that it does not know."""
    lines = list(default_file_lines(RUN.params))
    assert lines.index("udpIdleTimeout: 60.0") > lines.index("---")


def test_every_key_of_kube_proxy_that_applies_has_its_option() -> None:
    """So that a file with it is not refused for a reason of ours."""
    assert {option for _, option in APPLIED.values()} <= {option.name for option in RUN.params}
