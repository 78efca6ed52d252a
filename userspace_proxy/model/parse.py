"""From the JSON shapes of the API to Services, EndpointSlices and Nodes, with a Problem for each bad value.

Never raises: a bad value costs the item it stands in, and a bad object costs itself alone. What is left out on purpose
(headless and ExternalName Services) is no Problem. Knows nothing of where objects come from beyond the text
``origin``: with one, the object was written by hand, so what an API server would have filled in or refused is told as
a Problem. Entry points: ``parse_service``, ``parse_endpoint_slice``, ``parse_node``, each in the module of its name.
"""

from userspace_proxy.model.parse_endpoint_slice import HEADLESS_LABEL, SERVICE_NAME_LABEL, parse_endpoint_slice
from userspace_proxy.model.parse_node import parse_node
from userspace_proxy.model.parse_service import parse_service

__all__ = [
    "HEADLESS_LABEL",
    "SERVICE_NAME_LABEL",
    "parse_endpoint_slice",
    "parse_node",
    "parse_service",
]
