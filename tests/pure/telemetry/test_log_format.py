"""Log records as lines: text, JSON, and what configure_logging sends where."""

import logging
import subprocess
import sys
from ipaddress import IPv4Address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.telemetry.log_format import JsonFormatter, TextFormatter

CREATED = 1795296600.1239  # 2026-11-21T21:30:00.1239Z


def record(message: str, *args: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    """Return a record of a module of ours at a fixed time."""
    made = logging.LogRecord("userspace_proxy.control.pipeline", level, "pipeline.py", 1, message, args, None)
    made.created = CREATED
    made.__dict__.update(extra)
    return made


def with_traceback() -> logging.LogRecord:
    """Return an error record with a traceback of two lines of message."""
    made = record("it failed", level=logging.ERROR)
    error = ValueError("first\nsecond \x1b[31m")
    made.exc_info = (ValueError, error, None)
    return made


def test_text_record_with_data_is_one_line_with_time_level_logger_and_keys() -> None:
    """A text line has UTC time in milliseconds, level, short logger name, message, and the keys in their order."""
    line = TextFormatter().format(
        record("reconciled %d", 3, duration_s=0.25, service="shop/web:http", client=IPv4Address("10.0.0.1"))
    )
    assert line == (
        "2026-11-21T21:30:00.123Z INFO  control.pipeline: reconciled 3 "
        "service=shop/web:http client=10.0.0.1 duration_s=0.25"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("two words", '"two words"', id="space"),
        pytest.param("", '""', id="empty"),
        pytest.param("a=b", '"a=b"', id="equals sign"),
        pytest.param('say "x"', r'"say \"x\""', id="quotes"),
        pytest.param("C:\\x y", r'"C:\\x y"', id="backslash"),
        pytest.param("a\nb", r'"a\nb"', id="line break"),
        pytest.param("\x1b[2J", r'"\x1b[2J"', id="terminal control"),
        pytest.param("grün", "grün", id="beyond ASCII"),
        pytest.param(0.1 + 0.2, "0.3", id="float"),
        pytest.param(True, "True", id="bool"),
    ],
)
def test_text_value_with_special_characters_is_quoted(value: object, shown: str) -> None:
    """A value can neither be mistaken for another key nor break the line nor reach the terminal as a command."""
    assert TextFormatter().format(record("m", reason=value)).endswith(f": m reason={shown}")


def test_text_key_that_is_unlisted_or_none_is_not_rendered() -> None:
    """Only the log keys are shown, and None says nothing."""
    assert TextFormatter().format(record("m", colour="red", reason=None)).endswith("control.pipeline: m")


def test_text_message_with_line_break_stays_one_line() -> None:
    """What an object or a peer put into a message cannot forge a second record."""
    assert (
        TextFormatter().format(record("bad name %s", "x\n2026 INFO forged")).endswith(r"bad name x\n2026 INFO forged")
    )


def test_text_record_with_exc_info_is_followed_by_its_traceback() -> None:
    """A traceback follows on lines of its own, without control characters."""
    first, *rest = TextFormatter().format(with_traceback()).split("\n")
    assert first.endswith("ERROR control.pipeline: it failed")
    assert rest == ["ValueError: first", r"second \x1b[31m"]


def test_text_logger_of_a_library_keeps_its_full_name() -> None:
    """Only our own package name is left out."""
    made = record("m")
    made.name = "trio.serve_listeners"
    assert " INFO  trio.serve_listeners: m" in TextFormatter().format(made)


def test_json_record_with_data_is_one_object_with_native_numbers() -> None:
    """A JSON line has ts, level, logger, msg and the keys; numbers stay numbers, all else is text."""
    line = JsonFormatter().format(
        record("done", generation=7, duration_s=0.25, client=IPv4Address("10.0.0.1"), reason=None, colour="red")
    )
    assert msgspec.json.decode(line) == {
        "ts": "2026-11-21T21:30:00.123Z",
        "level": "INFO",
        "logger": "control.pipeline",
        "msg": "done",
        "client": "10.0.0.1",
        "generation": 7,
        "duration_s": 0.25,
    }


def test_json_record_with_exc_info_has_the_traceback_as_text() -> None:
    """A traceback is a field of the object; the line stays one."""
    line = JsonFormatter().format(with_traceback())
    assert "\n" not in line
    assert msgspec.json.decode(line)["traceback"].endswith("ValueError: first\nsecond \x1b[31m")


@given(message=st.text(st.characters()), value=st.text(st.characters()))
def test_any_text_becomes_exactly_one_printable_line(message: str, value: str) -> None:
    """No text, lone surrogates included, breaks a line or fails to be written, in either format."""
    made = record("%s", message, reason=value)
    assert TextFormatter().format(made).isprintable()
    encoded = JsonFormatter().format(made)
    assert len(encoded.encode().split(b"\n")) == 1
    msgspec.json.decode(encoded)


CONFIGURE = """
import logging
from userspace_proxy.telemetry.log_format import LogFormat, configure_logging
configure_logging("debug", LogFormat.JSON)
configure_logging("info", LogFormat.TEXT)
ours = logging.getLogger("userspace_proxy.cli")
ours.debug("hidden")
ours.info("shown")
logging.getLogger("urllib3").info("hidden")
logging.getLogger("urllib3").warning("shown too")
for _ in range(1205):
    ours.warning("again", extra={"service": "a/b"})
"""


def test_configure_logging_twice_writes_each_record_once_to_stderr() -> None:
    """The last call counts: our records from its level on, the libraries' warnings, repetitions folded by the end."""
    done = subprocess.run([sys.executable, "-c", CONFIGURE], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    lines = [line.split("Z ", 1)[1] for line in done.stderr.splitlines()]
    assert lines == [
        "INFO  cli: shown",
        "WARNING urllib3: shown too",
        *["WARNING cli: again service=a/b"] * 5,
        "WARNING cli: again ... repeated 1,200 times in 10 s service=a/b",
    ]


@pytest.mark.parametrize("chosen", [("debug", "json"), ("warning", "text")])
def test_logging_in_force_is_what_was_configured(chosen: tuple[str, str]) -> None:
    """So that another process can be told to log as this one does."""
    program = (
        "import sys\n"
        "from userspace_proxy.telemetry.log_format import LogFormat, configure_logging, logging_in_force\n"
        "print(*logging_in_force())\n"
        "configure_logging(sys.argv[1], LogFormat(sys.argv[2]))\n"
        "print(*logging_in_force())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *chosen], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["warning text", " ".join(chosen)]
