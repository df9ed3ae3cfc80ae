"""The sessions that did most in the last minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_SECONDS = 10
NUM_WINDOWS = 6
MAX_SESSIONS = 512  # in one window; later ones are not counted in it

SessionKey = tuple[str, str, str]
"""`(tenant, instance_id, session_id)`"""


@dataclass(slots=True, kw_only=True)
class SessionActivity:
    """What one session did."""

    num_operations: int = 0
    lookup_tokens: int = 0
    matched_tokens: int = 0
    num_bytes: int = 0

    def add(self, other: SessionActivity) -> None:
        """Add what it did in another window."""
        self.num_operations += other.num_operations
        self.lookup_tokens += other.lookup_tokens
        self.matched_tokens += other.matched_tokens
        self.num_bytes += other.num_bytes


class BusiestSessions:
    """Sessions of the last minute, in windows of ten seconds."""

    def __init__(self) -> None:
        self._windows: deque[tuple[int, dict[SessionKey, SessionActivity]]] = deque(maxlen=NUM_WINDOWS)

    def __repr__(self) -> str:
        return f"<BusiestSessions in {len(self._windows)} windows>"

    def session(self, key: SessionKey, now: float) -> SessionActivity:
        """Return what to add an operation to. `now` is in seconds, and never goes back."""
        number = int(now // WINDOW_SECONDS)
        if not self._windows or self._windows[-1][0] != number:
            self._windows.append((number, {}))
        window = self._windows[-1][1]
        activity = window.get(key)
        if activity is None:
            activity = SessionActivity()
            if len(window) < MAX_SESSIONS:
                window[key] = activity
        return activity

    def read(self, tenant: str, now: float, limit: int) -> Sequence[tuple[SessionKey, SessionActivity]]:
        """Return the busiest sessions of a tenant ("": of all), by bytes, then by tokens and operations."""
        oldest = int(now // WINDOW_SECONDS) - NUM_WINDOWS
        sums: dict[SessionKey, SessionActivity] = {}
        for number, window in self._windows:
            if number <= oldest:
                continue
            for key, activity in window.items():
                if tenant in ("", key[0]):
                    sums.setdefault(key, SessionActivity()).add(activity)
        order = sorted(
            sums.items(), key=lambda each: (-each[1].num_bytes, -each[1].lookup_tokens, -each[1].num_operations, each)
        )
        return order[:limit]
