"""What a Service asks of this proxy in particular: its annotations ``userspace-proxy.io/...``.

Part of ``parse_service``, with its rules. A value that cannot be used never costs the Service its traffic: the default
takes its place. Entry point: ``parse_annotations``.
"""

import re
from enum import StrEnum
from typing import TypeVar

from attrs import define

from userspace_proxy.model import api_types
from userspace_proxy.model.durations import parse_duration_s
from userspace_proxy.model.findings import Findings, quote
from userspace_proxy.model.names import Protocol
from userspace_proxy.model.service_port import Balance, UdpBalance

_PREFIX = "userspace-proxy.io/"
_BALANCE = f"{_PREFIX}balance"
_UDP_BALANCE = f"{_PREFIX}udp-balance"
_UDP_IDLE_TIMEOUT = f"{_PREFIX}udp-idle-timeout"

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_MAX_UDP_IDLE_TIMEOUT_S = 86400.0
"""A day, as for session affinity. Arbitrary: it is to tell seconds from milliseconds."""

_Word = TypeVar("_Word", bound=StrEnum)


@define
class Annotations:
    """What the annotations of one Service say; the fields are those of ``Service``."""

    balance: Balance | None = None
    udp_balance: UdpBalance = UdpBalance.FLOW
    udp_idle_timeout_s: float | None = None


def parse_annotations(metadata: api_types.ObjectMeta, spec: api_types.ServiceSpec, findings: Findings) -> Annotations:
    """Return what the annotations say; whoever wrote one by hand that has nothing to act on is told so."""
    found = Annotations()
    has_udp = any(port.protocol == Protocol.UDP for port in spec.ports or ())
    for key, value in (metadata.annotations or {}).items():
        if not key.startswith(_PREFIX):
            continue
        path, text = f"metadata.annotations[{key}]", value or ""
        if key == _BALANCE:
            found.balance = _parse_word(Balance, path, text, findings)
        elif key not in {_UDP_BALANCE, _UDP_IDLE_TIMEOUT}:
            findings.warn(
                "metadata.annotations",
                f"{quote(key)} is an unknown annotation, so it does nothing; this release knows {_BALANCE}, "
                f"{_UDP_BALANCE} and {_UDP_IDLE_TIMEOUT}",
            )
        elif findings.is_handwritten and not has_udp:
            findings.warn(path, "does nothing, as the Service has no port with protocol UDP; take it out")
        elif key == _UDP_BALANCE:
            found.udp_balance = _parse_word(UdpBalance, path, text, findings) or UdpBalance.FLOW
        else:
            found.udp_idle_timeout_s = _parse_timeout_s(path, text, findings)
    return found


def _parse_word(words: type[_Word], path: str, text: str, findings: Findings) -> _Word | None:
    try:
        return words(text)
    except ValueError:
        findings.warn(path, f"{quote(text)} is unknown, so the default is used; write {' or '.join(words)}")
        return None


def _parse_timeout_s(path: str, text: str, findings: Findings) -> float | None:
    """Return the seconds that a number or a duration means."""
    seconds = float(text) if _NUMBER.fullmatch(text) else parse_duration_s(text)
    if seconds is not None and 0 < seconds <= _MAX_UDP_IDLE_TIMEOUT_S:
        return seconds
    findings.warn(
        path,
        f"{quote(text)} cannot be used, so the default is used; write a number of seconds, as 90, or a duration, as "
        f"1m30s, above 0 and at most {_MAX_UDP_IDLE_TIMEOUT_S:.0f} (24h)",
    )
    return None
