"""Parses and formats sizes and durations, such as 8GiB and 60s."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

_SIZES: dict[str, int | str] = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("i", 1024), ("B", 1000), ("", 1000))
}
_DURATIONS: dict[str, int | str] = {"": 1, "ms": "0.001", "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}
# Patterns for JSON schemas. They are a little stricter about spaces and case than the parser.
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)?\s?([KMGTkmgt]i?[Bb]?|[Bb])?$"
DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?\s?(ms|s|m|min|h|d)?$"
_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Return the bytes of "8GiB", "500MB" or "4096". IEC units are powers of 1024, SI units of 1000.

    pydantic's ByteSize does not fit: it refuses "8Gi", and reads "1.GiB" as one byte.

    Raises: ValueError.
    """
    return int(_parse(str(text), _SIZES, "8GiB, 500MB or 4096"))


def parse_duration(text: str | float) -> float:
    """Return the seconds of "60s", "5m", "250ms" or "1.5".

    Raises: ValueError.
    """
    return float(_parse(str(text), _DURATIONS, "60s, 5m, 250ms or 1.5"))


def format_size(num_bytes: int) -> str:
    """Return a text that `parse_size` reads back exactly, such as 20.5GiB: in the largest unit that is short."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = int(_SIZES[unit])
        thousandths, rest = divmod(1_000 * num_bytes, factor)
        if num_bytes >= factor and rest == 0:
            return f"{Decimal(thousandths) / 1_000:f}{unit}"
    return str(num_bytes)


def format_duration(seconds: float) -> str:
    """Return a text that `parse_duration` reads back exactly, such as 250ms, 60s, 10m or 1.5s."""
    for unit, least in (("d", 172_800), ("h", 7_200), ("m", 120)):
        if seconds >= least and seconds % int(_DURATIONS[unit]) == 0:
            return f"{seconds / int(_DURATIONS[unit]):.0f}{unit}"
    exact = Decimal(repr(float(seconds)))
    if 0 < seconds < 1 and exact * 1_000 == int(exact * 1_000):
        return f"{int(exact * 1_000)}ms"
    text = f"{exact:f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}s"


def age_text(seconds: float) -> str:
    """Return an age for people, in the largest unit of which it is at least one: 3 days, 1 hour, 0 seconds."""
    number, name = max(0, int(seconds)), "second"
    for unit_seconds, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= unit_seconds:
            number, name = int(seconds // unit_seconds), unit
            break
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def _parse(text: str, units: Mapping[str, int | str], examples: str) -> Decimal:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    unit = match.group(2) if match else ""
    known = next((factor for name, factor in units.items() if name.lower() == unit.lower()), None)
    if match is None or known is None:
        raise ValueError(f"{text!r} is not like {examples}")
    return Decimal(match.group(1)) * Decimal(known)
