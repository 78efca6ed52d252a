"""Tests of messages in a pipe."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model import api_types
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.sources.manifest_messages import (
    EndpointSliceFound,
    FileEnd,
    Message,
    MessageReader,
    MoreEndpoints,
    NamelessFound,
    ServiceFound,
    Started,
    encode,
)

PROBLEM = Problem(Severity.ERROR, "Service shop/web", "spec", "is bad", "x.yaml, document 1")
SERVICE = api_types.Service(spec=api_types.ServiceSpec(cluster_ip="10.0.0.1", ports=[api_types.ServicePort(port=80)]))
SLICE = api_types.EndpointSlice(endpoints=[api_types.Endpoint(addresses=["10.0.0.2"])])
MESSAGES: list[Message] = [
    Started(),
    ServiceFound("shop", "web", "x.yaml, document 1", (PROBLEM,), SERVICE),
    ServiceFound("shop", "web", "x.yaml, document 1", (), None),
    EndpointSliceFound("shop", "web-1", "x.yaml, document 2", (), SLICE),
    MoreEndpoints(SLICE),
    NamelessFound(PROBLEM),
    FileEnd({"Pod": 2}, None, try_again=False),
    FileEnd({}, PROBLEM, try_again=True),
]


@given(cuts=st.lists(st.integers(0, 600), max_size=20))
def test_messages_arrive_wherever_the_pipe_cuts_them(cuts: list[int]) -> None:
    """A read returns any part of what was written, down to one byte or none."""
    data = b"".join(map(encode, MESSAGES))
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = MessageReader()
    found = [message for start, end in pairwise(edges) for message in reader.feed(data[start:end])]
    assert found == MESSAGES
