"""Tests of batch_encoder."""

import weakref
from collections.abc import Iterable

from builders import pool, pool_key

from userspace_proxy.control.batch_encoder import BatchEncoder
from userspace_proxy.ipc.commands import Batch, Command, SetPool, decode_batch


def _commands(count: int, address: str = "10.0.0.1:80") -> tuple[Command, ...]:
    return tuple(SetPool(pool(address, key=pool_key(f"shop/s{number}:http"))) for number in range(count))


def _rounds(encoder: BatchEncoder, batches: Iterable[tuple[Command, ...]]) -> None:
    for generation, commands in enumerate(batches, 1):
        batch = Batch(generation, commands)
        assert decode_batch(encoder.encode(batch)) == batch


def test_encoder_whatever_was_encoded_before_the_batch_is_what_it_was() -> None:
    """Small or large, for the first worker or the second, remembered or not."""
    few, many, others = _commands(3), _commands(50), _commands(50, "10.0.0.2:80")
    _rounds(BatchEncoder(2), [few, few, many, many, others, many, few, _commands(50), _commands(50), many])


def test_encoder_holds_what_it_remembers_and_nothing_else() -> None:
    """No other command can have the identity of one it has encoded, and it does not grow."""
    encoder = BatchEncoder(2)
    refs = []
    for generation in range(3):
        commands = _commands(50)
        refs.append(weakref.ref(commands[0]))
        encoder.encode(Batch(generation, commands))
        del commands
    assert [ref() is None for ref in refs] == [True, False, False]


def test_encoder_same_commands_for_another_worker_are_not_encoded_again() -> None:
    """Their bytes are the same object, behind another number."""
    encoder = BatchEncoder(2)
    commands = _commands(50)
    first, second = (encoder.encode(Batch(generation, commands)) for generation in (1, 2))
    assert first != second
    assert first[8:] == second[8:]
    assert len(encoder._encoded) == 1
