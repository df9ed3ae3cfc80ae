"""The caller's place in its own trace, for as long as a call of it is served."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

MAX_HEADER_CHARS = 256  # 55 in the version of today; later ones may append to that

traceparent: ContextVar[str] = ContextVar("traceparent", default="")
"""The header of that name (W3C Trace Context); empty if none was sent, or nothing is traced."""


def traceparent_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """What a call's metadata say; events keep it, so it may not be of any length."""
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str) and len(value) <= MAX_HEADER_CHARS:
            return value
    return ""
