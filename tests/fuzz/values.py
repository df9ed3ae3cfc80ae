"""Values at the edges of each type of field, and texts that break careless code."""

from __future__ import annotations

import math
from random import Random
from typing import Any

Field = Any
"""A field's descriptor."""


def _around(power: int) -> tuple[int, ...]:
    return (1 << power) - 1, 1 << power, (1 << power) + 1


_POWERS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 31, 32, 63, 64)
EDGES = tuple(sorted({0, *(edge for power in _POWERS for edge in _around(power))}))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-308, 1e308, math.inf, -math.inf, math.nan)
BIG_TEXT_BYTES = 1 << 16
TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\n",
    "line\r\nanother line",
    "\x1b[31mred\x1b[0m\x07\x08",
    "\u202etxet\u202c\u2066\u200b",  # bidi, and what has no width
    "e\u0301",  # é, not normalised
    "é",
    "\ufffe\uffff\U0010ffff",
    "İıſK",  # letters with an upper and a lower case that are not a pair
    "🏴\U000e0067\U000e0062\U000e007f",
    "%s%n%x%d",
    "{0}{}{__class__.__mro__}",
    "${jndi:ldap://127.0.0.1/a}",
    "$(touch /tmp/kvdepot-fuzz)`id`; exit 1 #",
    "' OR 1=1 --",
    '"}],"level":"ERROR"',
    "../../../../etc/passwd",
    "/dev/zero",
    ".",
    "..",
    "-",
    "--force",
    "nan",
    "0",
    "-1",
    "9" * 400,
    "x" * 64,
    "x" * 255,
    "x" * 256,
    "x" * 257,
    "é" * 128,
    "é" * 257,
    "𝕏" * 128,
    "x" * BIG_TEXT_BYTES,
    "\n" * BIG_TEXT_BYTES,
)
BYTES_LENGTHS = (0, 1, 3, 4, 31, 32, 63, 64, 65, 255, 256, 4096, BIG_TEXT_BYTES)

_LIMITS = {
    "INT32": (-(1 << 31), (1 << 31) - 1),
    "INT64": (-(1 << 63), (1 << 63) - 1),
    "UINT32": (0, (1 << 32) - 1),
    "UINT64": (0, (1 << 64) - 1),
}


def number(field: Field, random: Random) -> int:
    """Return an integer that the field can hold, mostly at an edge."""
    least, most = _LIMITS[next(name for name in _LIMITS if field.cpp_type == getattr(field, f"CPPTYPE_{name}"))]
    if random.random() < 0.1:
        return random.randint(least, most)
    value = random.choice((*EDGES, most, least))
    return max(least, min(most, -value if least and random.random() < 0.3 else value))


def text(random: Random) -> str:
    """Return a hostile text, or some characters of any kind."""
    if random.random() < 0.8:
        return random.choice(TEXTS)
    length = random.choice((1, 2, 8, 40))
    return "".join(
        chr(random.choice((random.randrange(1, 0xD800), random.randrange(0xE000, 0x110000)))) for _ in range(length)
    )


def scalar(field: Field, random: Random) -> Any:
    """Return a value of a field that is no message."""
    match field.cpp_type:
        case field.CPPTYPE_BOOL:
            return random.random() < 0.5
        case field.CPPTYPE_ENUM:
            known = [value.number for value in field.enum_type.values]
            return random.choice((*known, -1, max(known) + 1, 99, -(1 << 31), (1 << 31) - 1))
        case field.CPPTYPE_FLOAT | field.CPPTYPE_DOUBLE:
            return random.choice(FLOATS)
        case field.CPPTYPE_STRING if field.type == field.TYPE_BYTES:
            return random.randbytes(random.choice(BYTES_LENGTHS))
        case field.CPPTYPE_STRING:
            return text(random)
        case _:
            return number(field, random)
