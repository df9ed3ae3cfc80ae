"""The lookups of requests that vLLM has not made room for: how long each waits, and how long its answer is held.

A request waits at most for the lookup timeout, counted over all of its lookups since vLLM last made room for it, and
for the rest of the step in which that time ends. An answer is kept for a whole step at least, so that vLLM can use it
however long steps last.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from kvdepot.connector.lookups import Lookup
from kvdepot.connector.request_state import RequestState
from kvdepot.v1.cache_pb2 import Prefix


class LookupClient(Protocol):
    """Questions to the depot; `Lookups` is one."""

    @property
    def paused(self) -> bool: ...
    def open_session(self, request: Any) -> str: ...
    def begin(self, session_id: str, prefix: Prefix, computed_tokens: int, parent: str) -> Lookup: ...
    def give_up(self, lookup: Lookup) -> None: ...
    def release(self, leases: Sequence[str]) -> None: ...
    def end_session(self, session_id: str) -> None: ...
    def drop_session(self, session_id: str) -> None: ...


class PendingLookups:
    """Those of one scheduler. Times are monotonic."""

    def __init__(self, asks: LookupClient, timeout_seconds: float, hold_seconds: float) -> None:
        self._asks = asks
        self._timeout_seconds = timeout_seconds
        self._hold_seconds = hold_seconds
        self._asking: set[RequestState] = set()
        self._last_step = 0.0

    def look(self, state: RequestState) -> Lookup | None:
        """The request's lookup, answered or not, now that vLLM looks at the request; None if there is none."""
        now = time.monotonic()
        state.end_wait(now)
        if state.lookup is not None and now >= state.lookup.lease_until:
            self.give_up(state)
        return state.lookup

    def begin(self, state: RequestState, prefix: Prefix, parent: str) -> Lookup:
        """Asks for the longest prefix that is stored."""
        lookup = state.lookup = self._asks.begin(state.session_id, prefix, state.local_tokens, parent)
        state.known_to_depot = True
        self._asking.add(state)
        return lookup

    def may_wait(self, state: RequestState) -> bool:
        """Whether the request may wait on, for the answer or for room; otherwise it is computed."""
        now = time.monotonic()
        if state.lookup is None or now >= state.lookup.deadline or state.waited_seconds >= self._timeout_seconds:
            return False
        state.waits_since = now
        return True

    def take(self, state: RequestState) -> Lookup | None:
        """The lookup that vLLM has made room for; what it leases is the caller's from now on."""
        lookup, state.lookup = state.lookup, None
        state.waits_since = None
        self._asking.discard(state)
        return lookup

    def give_up(self, state: RequestState) -> None:
        """Lets go of the request's lookup, if it has one, and of what it leases."""
        if (lookup := self.take(state)) is not None:
            self._asks.give_up(lookup)

    def end_step(self) -> None:
        """Lets go of answers that vLLM had the time to use, and had no room."""
        now = time.monotonic()
        for state in list(self._asking):
            if state.waits_since is not None and state.waits_since <= self._last_step:
                state.end_wait(now)  # vLLM could have looked at it in this step
            lookup = state.lookup
            if lookup is None or lookup.matched_tokens is None:
                continue
            if lookup.noticed is None:
                lookup.noticed = now
            elif now >= lookup.noticed + self._hold_seconds:
                self.give_up(state)
        self._last_step = now
