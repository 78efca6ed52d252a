"""Durations as Go programs write them, such as ``1m30s``. Imports nothing of the package.

Entry point: ``parse_duration_s``.
"""

import re

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"[-+]?(0|({_PART.pattern})+)")


def parse_duration_s(text: str) -> float | None:
    """Return the seconds of a duration, None if the text is none; infinity where a float cannot hold them.

    Source: Go, ``time.ParseDuration``.
    """
    if not _DURATION.fullmatch(text):
        return None
    amount = sum((float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)), 0.0)
    return -amount if text.startswith("-") else amount
