"""The caller's place in its own trace, which rides on the calls that it makes."""

from __future__ import annotations

from contextvars import ContextVar

traceparent: ContextVar[str] = ContextVar("kvdepot_traceparent", default="")
"""The W3C Trace Context header of that name; empty: none is sent."""


def metadata() -> tuple[tuple[str, str], ...] | None:
    """What a call sends along."""
    value = traceparent.get()
    return (("traceparent", value),) if value else None
