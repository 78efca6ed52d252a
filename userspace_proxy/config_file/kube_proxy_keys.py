"""The keys of KubeProxyConfiguration, from kube-proxy 1.25 (the last with a userspace mode) to 1.36. Data only.

Source: staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go and pkg/proxy/apis/config/v1alpha1/defaults.go of
Kubernetes.
"""

from collections.abc import Mapping

from userspace_proxy.config_file.documents import Kind

APPLIED: Mapping[str, tuple[Kind, str]] = {
    "clientConnection.kubeconfig": (Kind.TEXT, "kubeconfig"),
    "hostnameOverride": (Kind.TEXT, "hostname_override"),
    "detectLocalMode": (Kind.TEXT, "detect_local_mode"),
    "clusterCIDR": (Kind.TEXT, "cluster_cidr"),
    "nodePortAddresses": (Kind.TEXTS, "nodeport_addresses"),
    "portRange": (Kind.TEXT, "proxy_port_range"),
    "healthzBindAddress": (Kind.TEXT, "healthz_bind_address"),
    "metricsBindAddress": (Kind.TEXT, "metrics_bind_address"),
    "bindAddressHardFail": (Kind.FLAG, "bind_address_hard_fail"),
    "udpIdleTimeout": (Kind.DURATION, "udp_idle_timeout"),
}
"""The keys that mean an option of ours, by their path."""

_PERIODS = {"syncPeriod": (Kind.DURATION, 30.0), "minSyncPeriod": (Kind.DURATION, 1.0)}
_MASQUERADE = {"masqueradeBit": (Kind.INTEGER, 14), "masqueradeAll": (Kind.FLAG, False)}
_SECTIONS: Mapping[str, Mapping[str, tuple[Kind, object]]] = {
    "": {
        "bindAddress": (Kind.TEXT, "0.0.0.0"),  # noqa: S104 - nothing is bound there
        "configSyncPeriod": (Kind.DURATION, 900.0),
        "enableProfiling": (Kind.FLAG, False),
        "featureGates": (Kind.ANYTHING, None),
        "mode": (Kind.TEXT, ""),
        "oomScoreAdj": (Kind.INTEGER, -999),
        "showHiddenMetricsForVersion": (Kind.TEXT, ""),
        "windowsRunAsService": (Kind.FLAG, False),
    },
    "clientConnection.": {
        "acceptContentTypes": (Kind.TEXT, ""),
        "contentType": (Kind.TEXT, "application/vnd.kubernetes.protobuf"),
        "qps": (Kind.NUMBER, 5),
        "burst": (Kind.INTEGER, 10),
    },
    "conntrack.": {
        "maxPerCore": (Kind.INTEGER, 32768),
        "min": (Kind.INTEGER, 131072),
        "tcpEstablishedTimeout": (Kind.DURATION, 86400.0),
        "tcpCloseWaitTimeout": (Kind.DURATION, 3600.0),
        "tcpBeLiberal": (Kind.FLAG, False),
        "udpTimeout": (Kind.DURATION, 0.0),
        "udpStreamTimeout": (Kind.DURATION, 0.0),
    },
    "detectLocal.": {"bridgeInterface": (Kind.TEXT, ""), "interfaceNamePrefix": (Kind.TEXT, "")},
    "iptables.": {
        **_PERIODS,
        **_MASQUERADE,
        "localhostNodePorts": (Kind.FLAG, True),
        "snatNodeInternalIP": (Kind.FLAG, False),
    },
    "ipvs.": {
        "syncPeriod": (Kind.DURATION, 30.0),
        "minSyncPeriod": (Kind.DURATION, 0.0),
        "scheduler": (Kind.TEXT, ""),
        "excludeCIDRs": (Kind.TEXTS, None),
        "strictARP": (Kind.FLAG, False),
        "tcpTimeout": (Kind.DURATION, 0.0),
        "tcpFinTimeout": (Kind.DURATION, 0.0),
        "udpTimeout": (Kind.DURATION, 0.0),
    },
    "logging.": {
        "format": (Kind.TEXT, "text"),
        "flushFrequency": (Kind.ANYTHING, "5s"),
        "verbosity": (Kind.INTEGER, 0),
        "vmodule": (Kind.ANYTHING, None),
        "options": (Kind.ANYTHING, None),
    },
    "nftables.": {**_PERIODS, **_MASQUERADE},
    "winkernel.": {
        "networkName": (Kind.TEXT, ""),
        "sourceVip": (Kind.TEXT, ""),
        "enableDSR": (Kind.FLAG, False),
        "rootHnsEndpointName": (Kind.TEXT, ""),
        "forwardHealthCheckVip": (Kind.FLAG, False),
    },
}

NOT_APPLIED: Mapping[str, tuple[Kind, object]] = {
    prefix + key: entry for prefix, keys in _SECTIONS.items() for key, entry in keys.items()
}
"""Kind and kube-proxy's default (durations in seconds) of the keys that mean nothing here, by their path."""

PARENTS = frozenset(path.rpartition(".")[0] for path in (*APPLIED, *NOT_APPLIED)) - {""}
"""The paths that have keys beneath them."""

OPTIONAL = frozenset(
    {
        "conntrack.maxPerCore",
        "conntrack.min",
        "conntrack.tcpCloseWaitTimeout",
        "conntrack.tcpEstablishedTimeout",
        "iptables.localhostNodePorts",
        "iptables.masqueradeBit",
        "nftables.masqueradeBit",
        "oomScoreAdj",
    }
)
"""Where kube-proxy tells a zero from a key that is not there; everywhere else zero is the default."""
