"""The lookups of waiting requests: how long each request waits, and how long its answer is kept.

A request waits at most for the lookup timeout and the rest of the step in which that time ends. The time counts over
all of its lookups since the engine last allocated blocks for it. An answer is kept for a whole step at least, so that
the engine can use it even if its steps are long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvdepot.connector.lookups import PendingLookup
from kvdepot.connector.request_state import RequestState
from kvdepot.v1.cache_pb2 import Prefix


class LookupClient(Protocol):
    """Calls to the depot that do not block. `DepotLookupClient` implements it."""

    @property
    def paused(self) -> bool: ...
    def open_session(self, request_id: str) -> str: ...
    def begin(
        self,
        session_id: str,
        prefix: Prefix,
        computed_tokens: int,
        parent: str,
        prefill_rate: float | None,
        will_continue: bool | None,
    ) -> PendingLookup: ...
    def give_up(self, lookup: PendingLookup) -> None: ...
    def release(self, leases: Sequence[str]) -> None: ...
    def end_session(self, session_id: str) -> None: ...
    def forget_session(self, session_id: str) -> None: ...


class PendingLookups:
    """The lookups of one scheduler. `clock` is the clock of the client's deadlines, in seconds."""

    def __init__(
        self, client: LookupClient, timeout_seconds: float, hold_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._hold_seconds = hold_seconds
        self._waiting: set[RequestState] = set()
        self._last_step = 0.0

    def current(self, state: RequestState) -> PendingLookup | None:
        """Return the request's lookup, answered or not, and end its wait. None: it has no valid lookup."""
        now = self._clock()
        state.end_wait(now)
        if state.lookup is not None and now >= state.lookup.lease_until:
            self.give_up(state)
        return state.lookup

    def begin(self, state: RequestState, prefix: Prefix, prefill_rate: float | None) -> None:
        """Begin to look up the longest stored prefix of the request. The rate is in tokens a second."""
        traits = state.traits
        state.lookup = self._client.begin(
            state.session_id, prefix, state.local_tokens, traits.traceparent, prefill_rate, traits.will_continue
        )
        state.known_to_depot = True
        self._waiting.add(state)

    def may_wait(self, state: RequestState) -> bool:
        """Return whether the request may wait for an answer or for free blocks. If so, its wait begins."""
        now = self._clock()
        if state.lookup is None or now >= state.lookup.deadline or state.waited_seconds >= self._timeout_seconds:
            return False
        state.waits_since = now
        return True

    def take(self, state: RequestState) -> PendingLookup | None:
        """Return and forget the request's lookup. The caller owns its leases."""
        lookup, state.lookup = state.lookup, None
        state.waits_since = None
        self._waiting.discard(state)
        return lookup

    def give_up(self, state: RequestState) -> None:
        """Give up the request's lookup, if it has one, and release its leases."""
        if (lookup := self.take(state)) is not None:
            self._client.give_up(lookup)

    def end_step(self) -> None:
        """Give up the answers that the engine had time to use, but no free blocks for."""
        now = self._clock()
        for state in list(self._waiting):
            if state.waits_since is not None and state.waits_since <= self._last_step:
                state.end_wait(now)  # the engine could have looked at it in this step
            lookup = state.lookup
            if lookup is None or lookup.matched_tokens is None:
                continue
            if lookup.noticed is None:
                lookup.noticed = now
            elif now >= lookup.noticed + self._hold_seconds:
                self.give_up(state)
        self._last_step = now
