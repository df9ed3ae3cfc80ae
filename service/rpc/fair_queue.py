"""Fairness between clients: many open calls of one client do not delay the few calls of another.

A call does its work on the event loop in one go, and gRPC hands calls over in the order in which they came. A client
with a hundred open calls would make each call of another client wait for all of them. So while several clients call,
calls begin one at a time, round robin over the clients.

A call can wait in two places. gRPC has a queue of its own, which mixes the clients, and it hands over one call after
the other, each by a hop between threads. So a call here begins only when gRPC's queue is empty. The request of an
arriving call comes by a hop of the same kind, after that of the next call. So once the request is here, the next call
arrives within a few passes of the event loop, or gRPC's queue is empty.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from time import perf_counter

GRACE_PASSES = 8  # five that it takes, and some for a busy machine
LONE_SECONDS = 0.001  # between two arrivals: then the second call did not wait behind the first in gRPC's queue
MAX_HOLD_SECONDS = 0.002  # that waiting calls wait for arriving ones
MAX_WAITING = 1_024  # calls of a client
SHARED_SECONDS = 10.0  # how long other clients are remembered


class FairQueue:
    """The calls that wait to begin, by client. Created on the event loop, which alone uses it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._num_arriving = 0
        self._num_holds = 0
        self._last_arrival = 0.0
        self._is_lone = True
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._num_passes_left = 0
        self._hold: asyncio.TimerHandle | None = None
        self._last_client: str | None = None
        self._shared_until = 0.0

    def __repr__(self) -> str:
        return f"<FairQueue, {sum(map(len, self._waiting.values()))} calls of {len(self._waiting)} clients wait>"

    def on_arrival(self) -> int:
        """Note a call that gRPC has handed over. `slot` or `on_departure` must follow, with what this returns."""
        now = perf_counter()
        self._is_lone = now - self._last_arrival > LONE_SECONDS
        self._last_arrival = now
        self._num_arriving += 1
        return self._num_holds

    def on_departure(self, arrival: int) -> None:
        """Note that a call ended before it asked for a slot."""
        if arrival == self._num_holds:
            self._num_arriving -= 1
            self._count_passes()

    def slot(self, client: str, arrival: int) -> asyncio.Future[None] | None:
        """Return what a call must wait for before it begins. None: it may begin at once.

        It may if only its client has called lately, if it is the only call here, or if its client has `MAX_WAITING`
        calls that wait.
        """
        if arrival == self._num_holds:
            self._num_arriving -= 1
        now = self._loop.time()
        if client != self._last_client:
            if self._last_client is not None:
                self._shared_until = now + SHARED_SECONDS
            self._last_client = client
        if now >= self._shared_until or (self._is_lone and not self._num_arriving and not self._waiting):
            return None
        waiting = self._waiting.get(client)
        if waiting is None:
            waiting = self._waiting[client] = deque()
            # First, because the other clients have had slots meanwhile.
            self._waiting.move_to_end(client, last=False)
        elif len(waiting) >= MAX_WAITING:
            return None
        begin = self._loop.create_future()
        waiting.append(begin)
        self._count_passes()
        return begin

    def _count_passes(self) -> None:
        """Begin a call after `GRACE_PASSES` passes of the event loop, if none arrives before."""
        if self._waiting and not self._num_passes_left:
            self._num_passes_left = GRACE_PASSES
            self._loop.call_soon(self._after_pass)

    def _after_pass(self) -> None:
        if self._num_arriving:
            self._num_passes_left = 0
            if self._hold is None:
                self._hold = self._loop.call_later(MAX_HOLD_SECONDS, self._end_hold)
            return
        self._num_passes_left -= 1
        if self._num_passes_left:
            self._loop.call_soon(self._after_pass)
            return
        self._begin_one()
        self._count_passes()

    def _end_hold(self) -> None:
        """Stop waiting for the calls that still arrive: their requests are slow, or wait for memory."""
        self._hold = None
        self._num_holds += 1
        self._num_arriving = 0
        self._count_passes()

    def _begin_one(self) -> None:
        """Begin the first call of the client that has waited longest for a slot."""
        while self._waiting:
            client, waiting = self._waiting.popitem(last=False)
            begin = waiting.popleft()
            if waiting:
                self._waiting[client] = waiting  # behind the other clients
            if not begin.done():  # its call was cancelled
                begin.set_result(None)
                return
