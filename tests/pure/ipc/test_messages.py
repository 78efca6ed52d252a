"""What control and workers say to each other, as bytes and back."""

import pytest
from builders import backend, listener_key, pool, pool_key, route, service_port_name, udp_settings
from hypothesis import given
from hypothesis import strategies as st
from msgspec import MsgspecError

from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.ipc.commands import (
    Ask,
    Batch,
    Close,
    Forget,
    Lead,
    LogState,
    Remember,
    RemovePool,
    Retire,
    Serve,
    SetPool,
    SetSources,
    Start,
    Stop,
    decode_batch,
    encode_batch,
)
from userspace_proxy.ipc.reports import (
    AffinityReport,
    Applied,
    FlowReport,
    Report,
    ServiceReport,
    Stopped,
    WorkerMessage,
    decode_message,
    encode_message,
)
from userspace_proxy.plan.state import ListenerSpec, SourceAddresses

REPORT = Report(
    number=7,
    services=(ServiceReport("shop/web:http", "TCP", 3, 1, 10, 20, (("client", "data", 2),), (("connected", 3),)),),
    udp_services=(FlowReport("shop/dns", 2, 1, (("idle", 1),), 4, 3, 40, 30, 0, (("denied", 1),)),),
    affinity=(AffinityReport("shop/web:http", "TCP", "fd00::1", "10.0.1.1", 8080, 12345.678901),),
    accept_pauses={"EMFILE": 1},
    dial_duration=(1, 0, 2),
    dial_duration_sum_s=0.003,
    affinity_evictions=1,
    unexpected_errors=0,
    open_relays=1,
    open_flows=1,
    watched=9,
)


def test_batch_with_every_command_comes_back_equal() -> None:
    """Values of all kinds are the same at the other end, and are found by the same keys there."""
    key, name = listener_key(), service_port_name()
    spec = ListenerSpec(key, backend("[fd00::1]:80").address, 80)
    commands = (
        Start("0", RelayLimits(), FlowLimits(), "info", "text", (65534, 65534)),
        SetSources(SourceAddresses(local_addresses=frozenset({backend().address}))),
        SetPool(pool("10.0.1.1:80", udp=udp_settings("10.0.1.2:80"))),
        RemovePool(pool_key()),
        Serve(1, spec, route(source_ranges=["10.0.0.0/8"]), is_shared=True),
        Lead(key, route()),
        Retire(key),
        Close(key),
        Forget(name),
        Remember(name, (("192.0.2.1", 1.5, backend()),)),
        Ask(1),
        LogState(),
        Stop(),
    )
    batch = decode_batch(encode_batch(Batch(3, commands)))
    assert batch == Batch(3, commands)
    (lead,) = (command for command in batch.commands if isinstance(command, Lead))
    assert {key: "found"}[lead.key] == "found"


@pytest.mark.parametrize(
    "message", [Applied(3), Applied(3, lost=(1, 2)), Stopped(4), REPORT], ids=lambda message: type(message).__name__
)
def test_message_comes_back_equal(message: WorkerMessage) -> None:
    """Also by its type: a message is no mere tuple."""
    read = decode_message(encode_message(message))
    assert read == message
    assert type(read) is type(message)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"A", id="no document"),
        pytest.param(b"X[1]", id="no such message"),
        pytest.param(b"\x80\x04K\x01.", id="pickle"),
        pytest.param(b'A["1"]', id="a text for a number"),
        pytest.param(encode_message(REPORT._replace(accept_pauses={"?": 1})).replace(b"?", b"\xff"), id="no UTF-8"),
        pytest.param(b"A[1,[],0]", id="one value too many"),
        pytest.param(encode_message(REPORT._replace(open_relays=1.5)), id="half a connection"),  # type: ignore[arg-type]
        pytest.param(encode_message(REPORT._replace(accept_pauses=[1])), id="a list for a map"),  # type: ignore[arg-type]
    ],
)
def test_message_of_a_worker_that_is_malformed_is_refused(payload: bytes) -> None:
    """Whoever has taken a worker over gets nothing else into the control process."""
    with pytest.raises(MsgspecError):
        decode_message(payload)


@given(st.binary(max_size=60) | st.binary(max_size=40).map(b"R".__add__) | st.text(max_size=40).map(str.encode))
def test_bytes_of_any_kind_are_a_message_or_refused(payload: bytes) -> None:
    """There is no third way."""
    try:
        message = decode_message(payload)
    except MsgspecError:
        return
    assert isinstance(message, WorkerMessage)
