"""How a log record becomes a line on stderr, as text for people or as JSON for collectors.

One record is one line; only a traceback takes more, and only in text. What a peer or an object put into a message can
neither break a line nor reach the terminal as a control sequence. Entry point: ``configure_logging``.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from enum import StrEnum

from userspace_proxy.telemetry.log_folding import FoldingHandler
from userspace_proxy.telemetry.log_keys import LOG_KEYS

PACKAGE = "userspace_proxy"
CONNECTION_LOGGER = "userspace_proxy.connections"
"""The logger with one record for each connection and each UDP flow that has ended."""


class LogFormat(StrEnum):
    """What the lines look like (``--log-format``)."""

    TEXT = "text"
    JSON = "json"


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send all log records to stderr; a repeated call replaces what the one before set up.

    Args:
        level: Lowest level shown of our own loggers: ``debug``, ``info``, ``warning`` or ``error`` in any case. The
            libraries' loggers show warnings and errors only.
        log_format: What the lines look like.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, FoldingHandler):
            root.removeHandler(handler)
            handler.close()
    handler = FoldingHandler(sys.stderr, time.monotonic)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(PACKAGE).setLevel(level.upper())


def logging_in_force() -> tuple[str, LogFormat]:
    """Return level and format with which ``configure_logging`` would have another process log as this one does."""
    handlers = (one for one in logging.getLogger().handlers if isinstance(one, FoldingHandler))
    is_json = any(isinstance(one.formatter, JsonFormatter) for one in handlers)
    level = logging.getLevelName(logging.getLogger(PACKAGE).getEffectiveLevel())
    return level.lower(), LogFormat.JSON if is_json else LogFormat.TEXT


class TextFormatter(logging.Formatter):
    """``2026-11-21T21:30:00.123Z INFO  control.pipeline: message key=value other="two words"``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the lines of a traceback after it."""
        message = _escape_unprintable(record.getMessage())
        line = f"{_timestamp(record)} {record.levelname:<5} {_short_name(record)}: {message}"
        line += "".join(f" {key}={_logfmt_value(value)}" for key, value in _extras(record))
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            line += "".join(f"\n{_escape_unprintable(part)}" for part in traceback.split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """One object per line: ``ts``, ``level``, ``logger``, ``msg``, the log keys, and ``traceback`` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object without a line break."""
        fields: dict[str, str | float | None] = {
            "ts": _timestamp(record),
            "level": record.levelname,
            "logger": _short_name(record),
            "msg": _encodable(record.getMessage()),
        }
        for key, value in _extras(record):
            fields[key] = value if isinstance(value, int | float) else _encodable(str(value))
        if record.exc_info:
            fields["traceback"] = _encodable(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _timestamp(record: logging.LogRecord) -> str:
    """Return the time of the record in UTC, as RFC 3339 with milliseconds."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.created % 1 * 1000):03}Z"


def _short_name(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{PACKAGE}.")


def _extras(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """Yield the log keys the record carries, in their order; None means that there is nothing to say."""
    for key in LOG_KEYS:
        value = getattr(record, key, None)
        if value is not None:
            yield key, value


def _logfmt_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and text.isprintable() and not any(character in ' "=' for character in text):
        return text
    quotable = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{_escape_unprintable(quotable)}"'


def _escape_unprintable(text: str) -> str:
    """Return the text with line breaks, control and formatting characters as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _encodable(text: str) -> str:
    """Return the text without lone surrogates (undecodable bytes of a file name), which JSON cannot carry."""
    return text.encode(errors="backslashreplace").decode()
