"""The keys under which a log record carries data (``extra=``), with their meaning.

The message of a record is constant, so that it can be searched for; what varies stands under these keys. A key that is
not listed here is not rendered.
"""

from collections.abc import Mapping
from types import MappingProxyType

LOG_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "service": "a ServicePort, as namespace/name:port",
        "protocol": "TCP or UDP",
        "frontend": "a Frontend",
        "client": "address and port of a client",
        "backend": "a Backend",
        "address": "an address and port of our own",
        "generation": "number of a snapshot of the DesiredState",
        "worker": "name of a worker",
        "resource": "an API resource, an object, a file or the path of an admin page",
        "reason": "why, in words",
        "errno": "symbolic name of an errno, as EMFILE",
        "attempt": "number of an attempt, from 1",
        "duration_s": "seconds",
        "dial_duration_s": "seconds from accept until a Backend was connected",
        "datagrams_to_backend": "datagrams of a flow sent to the Backend",
        "datagrams_to_client": "datagrams of a flow sent to the client",
        "bytes_to_backend": "bytes relayed from the client to the Backend",
        "bytes_to_client": "bytes relayed from the Backend to the client",
    }
)
"""Key and meaning, in the order in which a record shows them."""

SUBJECT_KEYS = ("service", "protocol", "frontend", "backend", "address", "worker", "resource", "reason", "errno")
"""The keys that say what a record is about: two records with the same message that agree in these say the same."""
