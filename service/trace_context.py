"""The caller's place in its own trace, for as long as a call of it is served."""

from __future__ import annotations

from contextvars import ContextVar

traceparent: ContextVar[str] = ContextVar("traceparent", default="")
"""The header of that name (W3C Trace Context); empty if none was sent, or nothing is traced."""
