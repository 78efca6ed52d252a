"""The values shared by all API objects, checked one by one: names, addresses, ports, protocols.

Each check returns the value, or None after it has noted a Problem with the path of the field. It never raises: one
bad value costs the item it stands in, nothing else. Entry point: ``Findings``.
"""

import re
from ipaddress import IPv6Address, ip_address

from attrs import define, field

from userspace_proxy.model import api_types
from userspace_proxy.model.names import IPAddress, NamespacedName, Protocol
from userspace_proxy.model.problem import Problem, Severity, fold_problems

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""RFC 1123 label: what the API demands of namespaces, Services and names of ports."""
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""RFC 1123 subdomain: what the API demands of most other names."""
_LEADING_ZEROS = re.compile(r"(?<![0-9a-f])0+(?=[0-9a-f])", re.IGNORECASE)

_MAX_QUOTED_CHARS = 60
_MAX_PORT = 65535


def quote(value: object) -> str:
    """Return a value as it is shown in a sentence: on one line and of bounded length, whatever it holds."""
    text = repr(value)
    return text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}..."


def is_label(text: str) -> bool:
    """Return whether a text is an RFC 1123 label, at most 63 characters long."""
    return _LABEL.fullmatch(text) is not None


def parse_ip(text: str) -> IPAddress | None:
    """Return the address that a text means to Kubernetes, None if it is none.

    As in Go's older parsers, which the API follows for stored objects: leading zeros mean nothing (``10.0.0.041`` is
    ``10.0.0.41``), and an IPv6 address that wraps an IPv4 one is that IPv4 address. Zones (``%eth0``) are refused.
    """
    if "%" in text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        try:
            address = ip_address(_LEADING_ZEROS.sub("", text))
        except ValueError:
            return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


@define
class Findings:
    """Checks the values of one object and collects what is wrong with them."""

    origin: str
    subject: str = ""
    """The object, once its name is known."""
    _problems: list[Problem] = field(factory=list, init=False)

    def error(self, path: str, text: str) -> None:
        """Note that something the object asks for is not served."""
        self._problems.append(Problem(Severity.ERROR, self.subject, path, text, self.origin))

    def warn(self, path: str, text: str) -> None:
        """Note that something is probably not as its author meant it."""
        self._problems.append(Problem(Severity.WARNING, self.subject, path, text, self.origin))

    def problems(self) -> tuple[Problem, ...]:
        """Return what was noted, in that order; a long tail is folded into one Problem."""
        return fold_problems(self._problems)

    def object_name(self, kind: str, metadata: api_types.ObjectMeta) -> NamespacedName | None:
        """Return the name of an object and remember it as the subject; an absent namespace is ``default``."""
        namespace = metadata.namespace or "default"
        name = metadata.name or ""
        if kind == "Service":
            is_valid, rule = is_label(name), "a Service; write lower-case letters, digits, '-', at most 63 characters"
        else:
            is_valid = _SUBDOMAIN.fullmatch(name) is not None
            rule = f"an {kind}; write lower-case letters, digits, '-' and '.', at most 253 characters"
        if not is_valid:
            self.error("metadata.name", f"{quote(name)} cannot be the name of {rule}")
            return None
        if not is_label(namespace):
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
        if name and not is_label(name):
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
