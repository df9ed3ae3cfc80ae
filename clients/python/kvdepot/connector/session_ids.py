"""Ids of sessions: a request's id, with a number while an earlier request of the same id has an open session."""

from __future__ import annotations

from kvdepot.connector.identity import session_id_of


class SessionIds:
    """The open ids. The scheduler's thread opens them and the event loop closes them, each in one atomic step."""

    def __init__(self) -> None:
        self._open: set[str] = set()

    def open(self, request_id: str) -> str:
        """Return an id that no open session has."""
        attempt = 1
        while (session_id := session_id_of(request_id, attempt)) in self._open:
            attempt += 1
        self._open.add(session_id)
        return session_id

    def close(self, session_id: str) -> None:
        """Make an id free again: its session has ended in the depot, or the depot never knew it."""
        self._open.discard(session_id)
