"""Checks of single values, as the API server makes them, and the list of what they found.

Source: ``k8s.io/apimachinery/pkg/util/validation``; Kubernetes 1.36 has StrictIPCIDRValidation on.
Entry point: ``Findings``.
"""

import re
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import msgspec
from apiserver.statuses import Cause
from attrs import define, field

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
MAX_SUBDOMAIN = 253
MAX_LABEL = 63
MAX_PORT = 65_535

PROTOCOLS = ("SCTP", "TCP", "UDP")


@define
class Findings:
    """What is wrong with an object."""

    causes: list[Cause] = field(factory=list)
    takes_loopback: bool = False
    """Whether an endpoint may have a loopback address."""

    def invalid(self, path: str, value: Any, why: str) -> None:
        """Note a value that is not allowed."""
        shown = msgspec.json.encode(value).decode()
        self.causes.append(Cause(path, f"Invalid value: {shown}: {why}"))

    def required(self, path: str, why: str = "") -> None:
        """Note a value that is missing."""
        self.causes.append(Cause(path, f"Required value{': ' if why else ''}{why}", "FieldValueRequired"))

    def forbidden(self, path: str, why: str) -> None:
        """Note a value that may not be there."""
        self.causes.append(Cause(path, f"Forbidden: {why}", "FieldValueForbidden"))

    def duplicate(self, path: str, value: Any) -> None:
        """Note a value that is there twice."""
        shown = msgspec.json.encode(value).decode()
        self.causes.append(Cause(path, f"Duplicate value: {shown}", "FieldValueDuplicate"))

    def too_many(self, path: str, count: int, most: int) -> None:
        """Note a list that is too long."""
        self.causes.append(Cause(path, f"Too many: {count}: must have at most {most} items", "FieldValueTooMany"))

    def check_supported(self, path: str, value: Any, supported: Collection[str]) -> None:
        """Check that a value is one of some."""
        if value not in supported:
            shown = msgspec.json.encode(value).decode()
            listed = ", ".join(f'"{one}"' for one in supported)
            why = f"Unsupported value: {shown}: supported values: {listed}"
            self.causes.append(Cause(path, why, "FieldValueNotSupported"))

    def check_label(self, path: str, value: Any) -> None:
        """Check the name of a port or the like; source: RFC 1123."""
        if not isinstance(value, str) or not LABEL.fullmatch(value):
            self.invalid(
                path,
                value,
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
                "and must start and end with an alphanumeric character",
            )

    def check_subdomain(self, path: str, value: Any) -> None:
        """Check the name of an object or node; source: RFC 1123."""
        if not isinstance(value, str) or len(value) > MAX_SUBDOMAIN or not SUBDOMAIN.fullmatch(value):
            self.invalid(
                path,
                value,
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
                "and must start and end with an alphanumeric character",
            )

    def check_label_value(self, path: str, value: Any) -> None:
        """Check the value of a label."""
        if not isinstance(value, str) or len(value) > MAX_LABEL or not LABEL_VALUE.fullmatch(value):
            self.invalid(path, value, "a valid label must be an empty string or consist of alphanumeric characters")

    def check_port(self, path: str, value: Any) -> None:
        """Check the number of a port."""
        if not isinstance(value, int) or not 1 <= value <= MAX_PORT:
            self.invalid(path, value, "must be between 1 and 65535, inclusive")

    def check_unique(self, path: str, values: Iterable[Any]) -> None:
        """Check that nothing is there twice; ``{}`` in the path stands for the position."""
        seen = []
        for position, value in enumerate(values):
            if value in seen:
                self.duplicate(path.format(position), value)
            seen.append(value)

    def check_address(self, path: str, value: Any, *, is_canonical: bool = False) -> IPv4Address | IPv6Address | None:
        """Return a valid IP address; leading zeros, zones and IPv4-mapped addresses are not valid."""
        try:
            address = ip_address(str(value))
        except ValueError:
            self.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
            return None
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            self.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
            return None
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            self.invalid(path, value, "must not be an IPv4-mapped IPv6 address")
            return None
        if is_canonical and str(address) != value:
            self.invalid(path, value, f'must be in canonical form ("{address}")')
            return None
        return address

    def check_not_special(self, path: str, address: IPv4Address | IPv6Address) -> None:
        """Check that an address may be that of an endpoint; source: validation.go, ValidateEndpointIP."""
        if address.is_unspecified:
            self.invalid(path, str(address), f"may not be unspecified ({address})")
        if address.is_loopback and not self.takes_loopback:
            self.invalid(path, str(address), "may not be in the loopback range (127.0.0.0/8, ::1/128)")
        if address.is_link_local:
            self.invalid(path, str(address), "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
        if address in ip_network("224.0.0.0/24") or address in ip_network("ff02::/16"):
            self.invalid(path, str(address), "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")

    def check_network(self, path: str, value: Any) -> None:
        """Check a network with its prefix."""
        text = str(value).strip()
        try:
            network = ip_network(text, strict=False) if "/" in text else None
        except ValueError:
            network = None
        if network is None:
            self.invalid(path, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
        elif network.network_address != ip_address(text.partition("/")[0]):
            self.invalid(path, value, "must not have bits set beyond the prefix length")
