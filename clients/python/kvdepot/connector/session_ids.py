"""Ids of sessions: a request's own, with a number while an earlier request of the same id has not ended."""

from __future__ import annotations

from typing import Any

from kvdepot.vllm.identity import session_of


class SessionIds:
    """The ids that are open. The scheduler's thread opens them, the event loop closes them: each is one step."""

    def __init__(self) -> None:
        self._open: set[str] = set()

    def open(self, request: Any) -> str:
        """An id that no open session has."""
        attempt = 1
        while (session_id := session_of(request, attempt)) in self._open:
            attempt += 1
        self._open.add(session_id)
        return session_id

    def close(self, session_id: str) -> None:
        """The depot knows that the session has ended, or never heard of it."""
        self._open.discard(session_id)
