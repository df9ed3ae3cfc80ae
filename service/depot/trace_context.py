"""The trace context of the call that is being served."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

MAX_HEADER_CHARS = 256  # version 00 has 55; later versions may append

traceparent: ContextVar[str] = ContextVar("traceparent", default="")
"""The W3C Trace Context header of that name; empty if the caller sent none, or tracing is off."""


def traceparent_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the header in a call's metadata, or "". Its length is bounded, because events keep it."""
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str) and len(value) <= MAX_HEADER_CHARS:
            return value
    return ""
