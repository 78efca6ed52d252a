"""A KubeProxyConfiguration: which of kube-proxy's settings apply here, and what is said of the others.

As kube-proxy does it: an unknown key is forgiven with a warning, a zero value says nothing. Its own default of
``udpIdleTimeout``, 250 ms, says nothing either; any other value applies. Entry point: ``parse_kube_proxy``.

Source: pkg/proxy/apis/config/validation/validation.go and cmd/kube-proxy/app/options.go of Kubernetes.
"""

from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from attrs import define, field, frozen

from userspace_proxy.config import (
    HEALTHZ_BIND_ADDRESS,
    METRICS_BIND_ADDRESS,
    DetectLocalMode,
    parse_bind_address,
)
from userspace_proxy.config_file.documents import Kind, Member, Members, Place, typed
from userspace_proxy.config_file.kube_proxy_keys import APPLIED, NOT_APPLIED, OPTIONAL, PARENTS
from userspace_proxy.config_file.setting import Setting
from userspace_proxy.errors import ConfigError

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"

_MODES_HERE = ("", "userspace")
_INTERFACE_KEYS = {
    "BridgeInterface": "detectLocal.bridgeInterface",
    "InterfaceNamePrefix": "detectLocal.interfaceNamePrefix",
}
"""Modes that tell pods by the interface that their packets come in at, which no socket knows; and what they need."""
_DEFAULT_PORTS = {"healthzBindAddress": HEALTHZ_BIND_ADDRESS[1], "metricsBindAddress": METRICS_BIND_ADDRESS[1]}
_NO_CHOICE: Mapping[str, tuple[object, ...]] = {"portRange": ("0", "0-0"), "udpIdleTimeout": (0.25,)}
"""Values of applied keys that leave the choice to the proxy. 250 ms is kube-proxy's own default, in many a file only as
that was dumped with all defaults; applied, it would cut off every UDP answer that takes longer."""


@frozen
class KubeProxyDocument:
    """What a KubeProxyConfiguration says."""

    settings: tuple[Setting, ...]
    warnings: tuple[str, ...]
    """Sentences, without the name of the file."""
    not_applied: tuple[Place, ...]
    """The keys that differ from kube-proxy's defaults, without having a meaning here."""


def parse_kube_proxy(document: Members) -> KubeProxyDocument:
    """Return what a document of this kind says.

    Raises:
        ConfigError: a value is of the wrong kind, or one that kube-proxy refuses.
    """
    reader = _Reader()
    for member in reader.leaves(document):
        reader.read(member)
    return KubeProxyDocument(tuple(reader.settings), tuple(reader.warnings()), tuple(reader.not_applied))


@define
class _Reader:
    settings: list[Setting] = field(factory=list, init=False)
    not_applied: list[Place] = field(factory=list, init=False)
    _unknown: list[Place] = field(factory=list, init=False)
    _repeated: list[Place] = field(factory=list, init=False)
    _values: dict[str, object] = field(factory=dict, init=False)
    """Of all known keys that are set."""

    def leaves(self, parent: Members) -> Iterator[Member]:
        """Yield the members that are known and hold no others; those with a mode come last, as it depends on others."""
        self._repeated += parent.repeated
        for member in sorted(parent.members, key=lambda member: member.place.path == "detectLocalMode"):
            path = member.place.path
            if path in PARENTS:
                if isinstance(member.value, Members):
                    yield from self.leaves(member.value)
                elif member.value is not None:
                    raise member.place.error("must be a mapping of keys")
            elif path in APPLIED or path in NOT_APPLIED:
                yield member
            elif path not in ("apiVersion", "kind"):
                self._unknown.append(member.place)

    def read(self, member: Member) -> None:
        """Take the value of a member."""
        place = member.place
        kind, known = APPLIED.get(place.path) or NOT_APPLIED[place.path]
        value = typed(member, kind)
        self._values[place.path] = value
        self._validate(place, kind, value)
        if place.path in NOT_APPLIED:
            if place.path != "mode" and not _is_default(place.path, value, known):
                self.not_applied.append(place)
        elif place.path == "detectLocalMode" and value in _INTERFACE_KEYS:
            self.not_applied.append(place)
        elif value and value not in _NO_CHOICE.get(place.path, ()):
            self.settings.append(Setting(str(known), _completed(place.path, value), place))

    def _validate(self, place: Place, kind: Kind, value: object) -> None:
        """Refuse what kube-proxy refuses, unless the option that the key means refuses it anyhow."""
        if not value:
            return
        if kind is Kind.DURATION and isinstance(value, float) and value < 0:
            raise place.error("must not be negative")
        match place.path:
            case "bindAddress":
                try:
                    ip_address(str(value))
                except ValueError:
                    raise place.error(f"must be an IP address, not '{value}'") from None
            case "healthzBindAddress" | "metricsBindAddress":
                _require_port(place, str(_completed(place.path, value)))
            case "detectLocalMode" if value in _INTERFACE_KEYS:
                needed = _INTERFACE_KEYS[str(value)]
                if not self._values.get(needed):
                    raise place.error(f"is {value}, which needs {needed}")
            case "detectLocalMode" if value not in list(DetectLocalMode):
                modes = ", ".join([*DetectLocalMode, *_INTERFACE_KEYS])
                raise place.error(f"must be one of {modes}, not '{value}'")

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each thing that may not be as its author wanted."""
        if self._unknown or self._repeated:
            parts = [f"{what} {_listed(places)}" for what, places in self._strict_errors() if places]
            yield f"not strictly a {KIND}: {'; '.join(parts)}"
        mode = self._values.get("mode")
        if mode and mode not in _MODES_HERE:
            yield f"mode '{mode}' selects nothing here: the option --steering (or the key steering) does"

    def _strict_errors(self) -> tuple[tuple[str, list[Place]], ...]:
        return ("ignored as unknown:", self._unknown), ("given twice, where the last counts:", self._repeated)


def _completed(path: str, value: object) -> object:
    """Return a value with the port that kube-proxy adds to an address without any."""
    if path not in _DEFAULT_PORTS:
        return value
    try:
        address = ip_address(str(value))
    except ValueError:
        return value
    return f"[{address}]:{_DEFAULT_PORTS[path]}" if address.version == 6 else f"{address}:{_DEFAULT_PORTS[path]}"  # noqa: PLR2004


def _require_port(place: Place, text: str) -> None:
    try:
        at = parse_bind_address(text)
    except ConfigError as error:
        raise place.error(f"cannot be used: {error}") from None
    if at is not None and at[1] == 0:
        raise place.error("must have a port from 1 to 65535")


def _is_default(path: str, value: object, default: object) -> bool:
    """Whether kube-proxy would do the same without this key."""
    return value is None or value == default or (path not in OPTIONAL and _is_zero(value))


def _is_zero(value: object) -> bool:
    """Whether a value, with all in it, is what the API writes for a field that is not set."""
    if isinstance(value, Members):
        return all(_is_zero(member.value) for member in value.members)
    return not value or value == "0"


def _listed(places: list[Place]) -> str:
    return ", ".join(map(str, places))
