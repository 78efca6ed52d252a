"""Tests of config_file: documents, keys, types, and the sentences about what is wrong."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.config_file.documents import Kind
from userspace_proxy.config_file.kube_proxy_keys import APPLIED, NOT_APPLIED
from userspace_proxy.config_file.own import OwnKey
from userspace_proxy.config_file.parse import ConfigFile, parse_config_file
from userspace_proxy.errors import ConfigError

KEYS: Mapping[str, OwnKey] = {
    "manifests": OwnKey("manifests", Kind.TEXTS),
    "dialTimeout": OwnKey("dial_timeout", Kind.NUMBER),
    "maxConnections": OwnKey("max_connections", Kind.INTEGER),
    "logConnections": OwnKey("log_connections", Kind.FLAG),
    "metricsBindAddress": OwnKey("metrics_bind_address", Kind.TEXT),
    "externalIPs": OwnKey("external_ips", Kind.FLAG),
}
KUBE_PROXY = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
OWN = "apiVersion: userspace-proxy.io/v1alpha1\nkind: UserspaceProxyConfiguration\n"
KUBEADM = (
    KUBE_PROXY
    + """\
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /var/lib/kube-proxy/k.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
udpIdleTimeout: 0s
winkernel: {enableDSR: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
"""
)
"""What kubeadm writes."""


def parsed(text: str) -> ConfigFile:
    """Return what a file ``f`` says."""
    return parse_config_file(text, "f", KEYS)


def values(text: str) -> dict[str, Any]:
    """Return the values of a file, by option."""
    return {setting.option: setting.value for setting in parsed(text).settings}


def refusal(text: str) -> str:
    """Return why a file is refused."""
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return str(caught.value)


def test_kube_proxy_h_20_file_of_kubeadm_says_what_it_sets_and_no_more() -> None:
    """Zero values are defaults: nothing is named, nothing is warned of."""
    file = parsed(KUBEADM)
    assert values(KUBEADM) == {"kubeconfig": "/var/lib/kube-proxy/k.conf", "cluster_cidr": "10.244.0.0/16"}
    assert (file.warnings, file.remarks) == ((), ())


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("clientConnection: {kubeconfig: k.conf}", "kubeconfig", "k.conf"),
        ("hostnameOverride: Node-1", "hostname_override", "Node-1"),
        ("clusterCIDR: 10.1.0.0/16,fd00::/56", "cluster_cidr", "10.1.0.0/16,fd00::/56"),
        ("detectLocalMode: NodeCIDR", "detect_local_mode", "NodeCIDR"),
        ("nodePortAddresses: [primary]", "nodeport_addresses", ["primary"]),
        ("portRange: 20000+100", "proxy_port_range", "20000+100"),
        ("healthzBindAddress: 10.0.0.1:99", "healthz_bind_address", "10.0.0.1:99"),
        ("healthzBindAddress: 10.0.0.1", "healthz_bind_address", "10.0.0.1:10256"),
        ("healthzBindAddress: '::'", "healthz_bind_address", "[::]:10256"),
        ("metricsBindAddress: 0.0.0.0", "metrics_bind_address", "0.0.0.0:10249"),
        ("metricsBindAddress: '[::1]:99'", "metrics_bind_address", "[::1]:99"),
        ("bindAddressHardFail: true", "bind_address_hard_fail", True),
        ("udpIdleTimeout: 1m30s", "udp_idle_timeout", 90.0),
        ("udpIdleTimeout: 249ms", "udp_idle_timeout", 0.249),
    ],
)
def test_kube_proxy_h_20_key_that_applies_is_an_option(line: str, option: str, value: object) -> None:
    """In the form that the option takes; a port that is missing is kube-proxy's."""
    assert values(KUBE_PROXY + line) == {option: value}


def test_kube_proxy_h_20_every_key_that_applies_is_tested_above() -> None:
    """A new one needs a row."""
    rows = test_kube_proxy_h_20_key_that_applies_is_an_option.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert {option for _, option, _ in rows} == {option for _, option in APPLIED.values()}


@pytest.mark.parametrize(
    "text",
    [
        *("portRange: 0-0", "portRange: '0'", "detectLocalMode: ''", "nodePortAddresses: []"),
        *("udpIdleTimeout: 250ms", "udpIdleTimeout: 0.25s", "udpIdleTimeout: 0s", "udpIdleTimeout: null"),
    ],
)
def test_kube_proxy_key_that_leaves_the_choice_sets_nothing(text: str) -> None:
    """The default of ours applies, and nothing is said: of UDP, too, where kube-proxy's own is of no use."""
    assert parsed(KUBE_PROXY + text) == ConfigFile()


def nested(path: str, value: str) -> str:
    """Return YAML for a key beneath others."""
    *parents, key = path.split(".")
    return "".join(f"{parent}: {{" for parent in parents) + f"{key}: {value}" + "}" * len(parents)


OTHER_VALUES = {Kind.TEXT: "other", Kind.FLAG: "true", Kind.INTEGER: "7", Kind.NUMBER: "7.5", Kind.DURATION: "7m"}
OTHER_VALUES |= {Kind.TEXTS: "[other]", Kind.ANYTHING: "{other: true}"}


@pytest.mark.parametrize("path", sorted({*NOT_APPLIED} - {"bindAddress", "mode"}))
def test_kube_proxy_h_20_key_that_means_nothing_here_is_named_if_it_is_not_the_default(path: str) -> None:
    """Once, with its line; and it sets nothing."""
    kind, default = NOT_APPLIED[path]
    other = "false" if default is True else OTHER_VALUES[kind]
    file = parsed(KUBE_PROXY + nested(path, other))
    assert file.settings == ()
    assert file.warnings == ()
    assert file.remarks == (f"f: of kube-proxy's settings these have no effect here: {path} (line 3)",)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("bindAddress: '::'", "bindAddress (line 3)"),
        (
            "iptables:\n  syncPeriod: 1m0s\n  masqueradeAll: true",
            "iptables.syncPeriod (line 4), iptables.masqueradeAll (line 5)",
        ),
        ("conntrack: {maxPerCore: 0}", "conntrack.maxPerCore (line 3)"),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
            "detectLocal.interfaceNamePrefix (line 4), detectLocalMode (line 3)",
        ),
    ],
)
def test_kube_proxy_keys_without_effect_are_named_together(text: str, named: str) -> None:
    """In one line for the log."""
    assert parsed(KUBE_PROXY + text).remarks == (f"f: of kube-proxy's settings these have no effect here: {named}",)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "iptables: {syncPeriod: 30s}",
            "iptables: {syncPeriod: 0.5m}",
            "configSyncPeriod: 15m0s",
            "oomScoreAdj: -999",
        ),
        *("conntrack: {tcpEstablishedTimeout: 24h0m0s}", "logging: {flushFrequency: 5s}"),
        *("iptables: {localhostNodePorts: true}", "clientConnection: {qps: 5.0, burst: 10}", "iptables: null"),
    ],
)
def test_kube_proxy_default_written_out_is_not_named(text: str) -> None:
    """However its duration or number is written."""
    assert parsed(KUBE_PROXY + text) == ConfigFile()


@pytest.mark.parametrize("mode", ["iptables", "ipvs", "nftables", "kernelspace"])
def test_kube_proxy_mode_of_the_kernel_is_a_warning(mode: str) -> None:
    """It never selects steering."""
    file = parsed(f"{KUBE_PROXY}mode: {mode}")
    assert file.settings == ()
    assert file.warnings == (
        f"f: mode '{mode}' selects nothing here: the option --steering (or the key steering) does",
    )
    assert parsed(KUBE_PROXY + "mode: userspace") == ConfigFile()


def test_kube_proxy_h_17_strictness_errors_are_one_warning() -> None:
    """Unknown keys at any depth and keys given twice are forgiven; of these the last counts."""
    text = KUBE_PROXY + "portRnge: 5-6\nclusterCIDR: 10.1.0.0/16\nipvs:\n  foo: 1\nclusterCIDR: 10.2.0.0/16\n"
    assert values(text) == {"cluster_cidr": "10.2.0.0/16"}
    assert parsed(text).warnings == (
        (
            "f: not strictly a KubeProxyConfiguration: ignored as unknown: portRnge (line 3), ipvs.foo (line 6); "
            "given twice, where the last counts: clusterCIDR (line 7)"
        ),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("clusterCIDR: 10", "f:3: clusterCIDR must be a text, not 10 (put it in quotes)"),
        ("clusterCIDR: [10.1.0.0/16]", "f:3: clusterCIDR must be a text, not a list"),
        ("nodePortAddresses: primary", "f:3: nodePortAddresses must be a list of texts, not 'primary'"),
        ("nodePortAddresses: [1]", "f:3: nodePortAddresses must be a list of texts, not a list"),
        ("bindAddressHardFail: 'yes'", "f:3: bindAddressHardFail must be true or false, not 'yes'"),
        ("bindAddressHardFail: 1", "f:3: bindAddressHardFail must be true or false, not 1"),
        ("oomScoreAdj: true", "f:3: oomScoreAdj must be a whole number, not true"),
        ("oomScoreAdj: 1.5", "f:3: oomScoreAdj must be a whole number, not 1.5"),
        ("iptables: {syncPeriod: 30}", "f:3: iptables.syncPeriod must be a duration such as 30s, not 30"),
        ("iptables: {syncPeriod: soon}", "f:3: iptables.syncPeriod must be a duration such as 30s, not 'soon'"),
        ("iptables: {syncPeriod: -1s}", "f:3: iptables.syncPeriod must not be negative"),
        ("udpIdleTimeout: -250ms", "f:3: udpIdleTimeout must not be negative"),
        ("udpIdleTimeout: 60", "f:3: udpIdleTimeout must be a duration such as 30s, not 60"),
        ("iptables: 5", "f:3: iptables must be a mapping of keys"),
        ("clientConnection:\n  kubeconfig: {a: b}", "f:4: clientConnection.kubeconfig must be a text, not a mapping"),
        ("bindAddress: eth0", "f:3: bindAddress must be an IP address, not 'eth0'"),
        ("metricsBindAddress: '127.0.0.1:0'", "f:3: metricsBindAddress must have a port from 1 to 65535"),
        (
            "healthzBindAddress: ':10256'",
            (
                "f:3: healthzBindAddress cannot be used: ':10256' is no address to listen on: "
                "write 127.0.0.1:10249, [::1]:10249, or '' for none"
            ),
        ),
        (
            "detectLocalMode: BridgeInterface",
            "f:3: detectLocalMode is BridgeInterface, which needs detectLocal.bridgeInterface",
        ),
        (
            "detectLocalMode: X",
            "f:3: detectLocalMode must be one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix, not 'X'",
        ),
        ("oomScoreAdj: !!int many", "f:3: oomScoreAdj has the tag tag:yaml.org,2002:int, which does not fit its value"),
    ],
)
def test_kube_proxy_value_of_no_use_is_one_sentence(text: str, sentence: str) -> None:
    """File, line, key, and what it has to be."""
    assert refusal(KUBE_PROXY + text) == sentence


def test_own_document_sets_options() -> None:
    """Each key in the unit of its option; null leaves the default, an empty text is a value."""
    text = OWN + (
        "manifests: [a.yaml, b]\ndialTimeout: 3\nmaxConnections: null\nlogConnections: true\nmetricsBindAddress: ''\n"
    )
    assert values(text) == {
        "manifests": ["a.yaml", "b"],
        "dial_timeout": 3,
        "log_connections": True,
        "metrics_bind_address": "",
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dialTimout: 3", "f:3: dialTimout is no key of UserspaceProxyConfiguration; the nearest is dialTimeout"),
        ("externalips: true", "f:3: externalips is no key of UserspaceProxyConfiguration; the nearest is externalIPs"),
        (
            "color: red",
            "f:3: color is no key of UserspaceProxyConfiguration; 'userspace-proxy config default' prints them all",
        ),
        ("dialTimeout: 3\ndialTimeout: 3", "f:4: dialTimeout stands twice"),
        ("dialTimeout: 3s", "f:3: dialTimeout must be a number, not '3s'"),
        ("dialTimeout: true", "f:3: dialTimeout must be a number, not true"),
        ("maxConnections: 2.5", "f:3: maxConnections must be a whole number, not 2.5"),
        ("manifests: a.yaml", "f:3: manifests must be a list of texts, not 'a.yaml'"),
        ("metricsBindAddress: 10249", "f:3: metricsBindAddress must be a text, not 10249 (put it in quotes)"),
        ("metricsBindAddress: 2026-01-01T00:00:00Z\nfoo: 1", "f:4: foo is no key of UserspaceProxyConfiguration; "),
    ],
)
def test_own_document_forgives_nothing(text: str, sentence: str) -> None:
    """File, line, key, and the nearest key or what its value has to be."""
    assert refusal(OWN + text).startswith(sentence)


@pytest.mark.parametrize(
    "text",
    [
        f"{KUBE_PROXY}clusterCIDR: 10.1.0.0/16\n---\n{OWN}dialTimeout: 3\n",
        f"---\n{OWN}dialTimeout: 3\n---\n# nothing\n---\n{KUBE_PROXY}clusterCIDR: 10.1.0.0/16\n...\n",
    ],
)
def test_both_documents_may_stand_in_any_order(text: str) -> None:
    """Empty documents do not count."""
    assert values(text) == {"cluster_cidr": "10.1.0.0/16", "dial_timeout": 3}


def test_json_is_read_too_with_tabs() -> None:
    """As tools indent it."""
    text = '{\n\t"apiVersion": "kubeproxy.config.k8s.io/v1alpha1",\n\t"kind": "KubeProxyConfiguration",\n'
    assert values(text + '\t"clientConnection": {"kubeconfig":\t"a\\/b"}\n}\n') == {"kubeconfig": "a/b"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind: [", "f:1: not YAML: while parsing a flow node, expected the node content, but found '<stream end>'"),
        (
            "a: 1\n\tb: 2",
            "f:2: not YAML: while scanning for the next token, found character '\\t' that cannot start any token",
        ),
        ("a\0", "f: not YAML: unacceptable character #x0000: special characters are not allowed"),
        ("[1]", "f: not a configuration file: a document is no mapping of keys"),
        ("just text", "f: not a configuration file: a document is no mapping of keys"),
        ("a: &a [*a]", "f: not a configuration file: nested too deeply"),
        (
            "apiVersion: v1\nkind: ConfigMap\n",
            (
                "f:2: kind ConfigMap of apiVersion v1 is no configuration; write KubeProxyConfiguration "
                "(kubeproxy.config.k8s.io/v1alpha1) or UserspaceProxyConfiguration (userspace-proxy.io/v1alpha1)"
            ),
        ),
        ("clusterCIDR: 10.1.0.0/16\n", "f:1: kind none of apiVersion none is no configuration; write Kube"),
        (
            "apiVersion: userspace-proxy.io/v1\nkind: UserspaceProxyConfiguration\n",
            "f:2: kind UserspaceProxyConfiguration of apiVersion userspace-proxy.io/v1 is no configuration; write ",
        ),
        (f"{OWN}---\n{OWN}", "f:4: a second document of kind UserspaceProxyConfiguration; put all of it into one"),
        (
            f"{OWN}metricsBindAddress: 127.0.0.1:1\n---\n{KUBE_PROXY}metricsBindAddress: 127.0.0.1:2\n",
            "f:3: metricsBindAddress says again what metricsBindAddress (line 7) says; remove one of them",
        ),
    ],
)
def test_file_of_no_use_is_one_sentence(text: str, sentence: str) -> None:
    """What is wrong, with the line where one is known."""
    assert refusal(text).startswith(sentence)


@pytest.mark.parametrize("text", ["", "# all commented out\n", "---\n---\n"])
def test_empty_file_is_a_warning(text: str) -> None:
    """It may be wanted (/dev/null), and it may be a mistake."""
    file = parsed(text)
    assert file.settings == ()
    assert file.warnings == ("f: the file is empty; 'userspace-proxy config default' prints one with all defaults",)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "1s", "10.0.0.0/8"])
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
)


@given(key=st.sampled_from(sorted({*APPLIED, *NOT_APPLIED, "iptables", "logging.options.x", "<<"})), value=_VALUES)
def test_any_value_of_any_key_is_taken_or_refused_with_a_sentence(key: str, value: object) -> None:
    """No value is a bug of ours."""
    shown = json.dumps(value).replace("NaN", ".nan").replace("Infinity", ".inf")
    try:
        parsed(KUBE_PROXY + nested(key, shown))
    except ConfigError as error:
        assert str(error).startswith("f:")  # noqa: PT017 - it may be taken, too
