"""The trace context of the call that is being served: its caller's, and the session that it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

MAX_HEADER_CHARS = 256  # version 00 has 55; later versions may append

traceparent: ContextVar[str] = ContextVar("traceparent", default="")
"""The W3C Trace Context header of that name; empty if the caller sent none, or tracing is off."""


class CallSession:
    """The session that a call names, filled in when its request is read."""

    __slots__ = ("instance_id", "session_id")

    def __init__(self) -> None:
        self.instance_id = ""
        self.session_id = ""


call_session: ContextVar[CallSession | None] = ContextVar("call_session", default=None)
"""Where to note the call's session. None: it is not needed, because the caller sent a trace or tracing is off."""


def note_session(instance_id: str, session_id: str) -> None:
    """Note which session the call belongs to."""
    noted = call_session.get()
    if noted is not None:
        noted.instance_id, noted.session_id = instance_id, session_id


def traceparent_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the header in a call's metadata, or "". Its length is bounded, because events keep it."""
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str) and len(value) <= MAX_HEADER_CHARS:
            return value
    return ""
