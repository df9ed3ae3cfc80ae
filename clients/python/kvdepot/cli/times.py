"""Times in options and for people, such as 10m and 2 h 5 min."""

from __future__ import annotations

import re

from kvdepot.cli.terminal import fail

_SECONDS_OF = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}


def seconds_of(text: str, option: str) -> float:
    """Return the seconds of an option's text, such as 30s or 2h.

    Raises: typer.Exit.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or (match[2] or "s") not in _SECONDS_OF:
        fail(f"{option}: {text!r} is not like 30s, 10m or 2h", 2)
    return float(match[1]) * _SECONDS_OF[match[2] or "s"]


def time_text(seconds: float) -> str:
    """Return a time in its two largest units."""
    left = round(seconds)
    parts = []
    for unit in ("d", "h", "min", "s"):
        number, left = divmod(left, _SECONDS_OF[unit])
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2]) or "0 s"
