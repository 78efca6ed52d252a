"""The log keys: complete, and the only ones in use."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import userspace_proxy
from userspace_proxy.telemetry.log_keys import LOG_KEYS, SUBJECT_KEYS

MODULES = sorted(Path(userspace_proxy.__file__).parent.rglob("*.py"))


def extra_keys(source: str) -> Iterator[str]:
    """Yield every key of a dict that is passed as ``extra=``; anything that cannot be checked is ``"?"``."""
    for node in ast.walk(ast.parse(source)):
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            if keyword.arg == "extra":
                keys = keyword.value.keys if isinstance(keyword.value, ast.Dict) else [None]
                yield from (str(key.value) if isinstance(key, ast.Constant) else "?" for key in keys)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_extra_of_every_log_call_has_listed_keys_only(module: Path) -> None:
    """No record of this package carries a key that would not be rendered."""
    assert set(extra_keys(module.read_text())) <= set(LOG_KEYS)


def test_extra_keys_of_unlisted_and_computed_keys_are_seen() -> None:
    """The check above sees the keys of a literal, and does not overlook what is not a literal."""
    source = (
        'log.info("x", extra={"service": 1, "colour": 2})\nlog.info("x", extra={key: 1})\nlog.info("x", extra=found)'
    )
    assert list(extra_keys(source)) == ["service", "colour", "?", "?"]


def test_subject_keys_are_log_keys() -> None:
    """What tells records apart is among what they can carry."""
    assert set(SUBJECT_KEYS) <= set(LOG_KEYS)
