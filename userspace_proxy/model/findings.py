"""The values shared by all API objects, checked one by one: names, addresses, networks, ports, protocols.

Each check returns the value, or None after it has noted a Problem with the path of the field. It never raises: one
bad value costs the item it stands in, nothing else. Entry point: ``Findings``.
"""

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from attrs import define, field

from userspace_proxy.model import api_types
from userspace_proxy.model.names import IPAddress, IPNetwork, NamespacedName, Protocol
from userspace_proxy.model.problem import Problem, Severity, fold_problems

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""RFC 1123 label: what the API demands of namespaces, Services and names of ports."""
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""RFC 1123 subdomain: what the API demands of most other names."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}")
"""Wider than any rule of the API, and yet the same in a log, a label of a metric and a key of a file."""
_IPV4 = re.compile(r"0*([0-9]{1,3})\.0*([0-9]{1,3})\.0*([0-9]{1,3})\.0*([0-9]{1,3})")
"""Matched here, not by ``ipaddress``, which refuses leading zeros and takes a third longer."""
_LEADING_ZEROS = re.compile(r"(?<![0-9a-f])0+(?=[0-9a-f])", re.IGNORECASE)

_WRAP_BITS = 96
"""Of an IPv6 address that wraps an IPv4 one (RFC 4291, 2.5.5.2), before that begins."""
_MAX_QUOTED_CHARS = 60
_MAX_PORT = 65535


def quote(value: object) -> str:
    """Return a value as it is shown in a sentence: on one line and of bounded length, whatever it holds."""
    text = repr(value)
    return text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}..."


def is_label(text: str) -> bool:
    """Return whether a text is an RFC 1123 label, at most 63 characters long."""
    return _LABEL.fullmatch(text) is not None


def _is_subdomain(text: str) -> bool:
    return _SUBDOMAIN.fullmatch(text) is not None


def parse_ip(text: str) -> IPAddress | None:
    """Return the address that a text means to Kubernetes, None if it is none.

    As in Go's older parsers, which the API follows for stored objects: leading zeros mean nothing (``10.0.0.041`` is
    ``10.0.0.41``), and an IPv6 address that wraps an IPv4 one is that IPv4 address. Zones (``%eth0``) are refused.
    """
    if ":" not in text:
        octets = _IPV4.fullmatch(text)
        try:
            return IPv4Address(bytes(map(int, octets.groups()))) if octets else None
        except ValueError:
            return None
    if "%" in text:
        return None
    try:
        address = IPv6Address(text)
    except ValueError:
        try:
            address = IPv6Address(_LEADING_ZEROS.sub("", text))
        except ValueError:
            return None
    return address.ipv4_mapped or address


def parse_network(text: str) -> IPNetwork | None:
    """Return the network that a text in CIDR notation means to Kubernetes, None if it is none.

    Bits of the host are cleared, the address is read as by ``parse_ip``, and the length must be there.
    """
    host, _, length = text.partition("/")
    address = parse_ip(host)
    # int() and ipaddress take more than digits: signs, spaces, netmasks
    if address is None or not (length.isascii() and length.isdigit()):
        return None
    unwrapped_bits = _WRAP_BITS if ":" in host and isinstance(address, IPv4Address) else 0
    try:
        return ip_network((address, int(length) - unwrapped_bits), strict=False)
    except ValueError:
        return None


def filled(texts: Iterable[str] | None) -> list[tuple[int, str]]:
    """Return the texts of a list that are not blank, without the space around them, each with its index."""
    return [(i, text.strip()) for i, text in enumerate(texts or ()) if text.strip()]


@define
class Findings:
    """Checks the values of one object and collects what is wrong with them."""

    origin: str
    subject: str = ""
    """The object, once its name is known."""
    _problems: list[Problem] = field(factory=list, init=False)

    @property
    def is_handwritten(self) -> bool:
        """Whether a person wrote the object, so that no API server has checked it or filled it in."""
        return bool(self.origin)

    def error(self, path: str, text: str) -> None:
        """Note that something the object asks for is not served."""
        self._problems.append(Problem(Severity.ERROR, self.subject, path, text, self.origin))

    def warn(self, path: str, text: str) -> None:
        """Note that something is probably not as its author meant it."""
        self._problems.append(Problem(Severity.WARNING, self.subject, path, text, self.origin))

    def problems(self) -> tuple[Problem, ...]:
        """Return what was noted, in that order; a long tail is folded into one Problem."""
        return fold_problems(self._problems)

    def accepts_name(self, text: str, is_valid: Callable[[str], bool]) -> bool:
        """Return whether a text can be used as a name.

        Args:
            text: The name.
            is_valid: The API's rule. It is for objects written by hand: an API server has judged its own by the rules
                of its release, so they need only be fit to print.
        """
        return is_valid(text) if self.is_handwritten else _PLAIN_NAME.fullmatch(text) is not None

    def object_name(self, kind: str, metadata: api_types.ObjectMeta) -> NamespacedName | None:
        """Return the name of an object and remember it as the subject; an absent namespace is ``default``."""
        namespace = metadata.namespace or "default"
        name = metadata.name or ""
        if kind == "Service":
            is_valid, rule = is_label, "a Service; write lower-case letters, digits, '-', at most 63 characters"
        else:
            is_valid = _is_subdomain
            rule = f"an {kind}; write lower-case letters, digits, '-' and '.', at most 253 characters"
        if not self.accepts_name(name, is_valid):
            self.error("metadata.name", f"{quote(name)} cannot be the name of {rule}")
            return None
        if not self.accepts_name(namespace, is_label):
            self.error(
                "metadata.namespace",
                f"{quote(namespace)} cannot be a namespace; write lower-case letters, digits and '-', "
                f"at most 63 characters",
            )
            return None
        found = NamespacedName(namespace, name)
        self.subject = f"{kind} {found}"
        return found

    def address(self, path: str, text: str) -> IPAddress | None:
        """Return an address that can be dialled."""
        found = parse_ip(text)
        if found is None:
            self.error(path, f"{quote(text)} is not an IP address")
            return None
        if found.is_unspecified or found.is_multicast:
            self.error(path, f"{found} is not the address of one host, so it cannot be dialled")
            return None
        return found

    def network(self, path: str, text: str) -> IPNetwork | None:
        """Return a network."""
        found = parse_network(text)
        if found is None:
            self.error(path, f"{quote(text)} is not a network; write ADDRESS/LENGTH, as 192.0.2.0/24")
        return found

    def protocol(self, path: str, text: str | None) -> Protocol | None:
        """Return a transport protocol, TCP where none is said."""
        try:
            return Protocol(text or Protocol.TCP)
        except ValueError:
            self.error(path, f"{quote(text)} is not a protocol; write {', '.join(Protocol)}")
            return None

    def port_number(self, path: str, number: int | None) -> int | None:
        """Return a port number, 1-65535."""
        if number is None:
            self.error(path, f"is missing; write a number from 1 to {_MAX_PORT}")
            return None
        if not 1 <= number <= _MAX_PORT:
            self.error(path, f"{quote(number)} is not a port; write a number from 1 to {_MAX_PORT}")
            return None
        return number

    def port_name(self, path: str, text: str | None, seen: set[str]) -> str | None:
        """Return the name of a port, ``""`` for an unnamed one, and add it to those ``seen`` in this object."""
        name = text or ""
        if name and not self.accepts_name(name, is_label):
            self.error(
                path,
                f"{quote(name)} cannot be the name of a port; write lower-case letters, digits and '-', "
                f"at most 63 characters",
            )
            return None
        if name in seen:
            what = f"{quote(name)} names an earlier port already" if name else "is missing, as in an earlier port"
            self.error(path, f"{what}; give each port a name of its own")
            return None
        seen.add(name)
        return name
