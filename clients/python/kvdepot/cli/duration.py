"""A duration that a person wrote."""

from __future__ import annotations

import re

from kvdepot.cli.terminal import fail

_SECONDS_OF = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}


def seconds_of(text: str, option: str) -> float:
    """Return the seconds of a text such as 30s, 10m or 2h. Another text ends the command: `option` had it."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or (match[2] or "s") not in _SECONDS_OF:
        fail(f"{option}: {text!r} is not like 30s, 10m or 2h", 2)
    return float(match[1]) * _SECONDS_OF[match[2] or "s"]
