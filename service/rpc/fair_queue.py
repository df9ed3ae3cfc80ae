"""Turns: which call may begin next, so that one client's many calls don't stand before another's few.

A call's work on the event loop is done in one go, and calls begin in the order in which they came: a client with a
hundred calls under way would make each call of others wait for a hundred. So where there are several clients, calls
begin one at a time, and clients take turns.

A call waits in two places. gRPC hands calls over one by one, each a hop between threads after the one before; were
calls begun as fast as they are handed over, the others would wait there, where nobody can choose among them. So the
next call begins when none has been handed over for a moment: then all that have come are here, and clients can be told
apart.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from time import perf_counter

MAX_WAITING = 1_024
SHARED_SECONDS = 10.0  # for which clients are remembered not to be alone
HANDOVER_SECONDS = 0.000_2  # a hop between threads, and reading a message
LONGEST_HANDOVER_SECONDS = 0.002  # and not longer because the machine stood still in the midst of a turn
ALONE_SECONDS = 0.000_3  # from one call's handing over to the next, if these are not under way together
MAX_PAUSES = 8  # that calls which come without end may hold up a turn


class FairQueue:
    """Made on the event loop, which alone touches it. What clients are named by is the caller's business."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_taken = False
        self._turn_runs = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._last_client: str | None = None
        self._shared_until = 0.0
        self._last_handover = 0.0
        self._handover_before = 0.0
        self._last_turn = 0.0
        self._turn_began = 0.0
        self._turn_seconds = 0.0

    def __repr__(self) -> str:
        return f"<Turns, {sum(map(len, self._waiting.values()))} calls of {len(self._waiting)} clients wait>"

    def handed_over(self) -> None:
        """Note that gRPC has handed over a call, which is yet to be read."""
        self._handover_before, self._last_handover = self._last_handover, perf_counter()

    def take(self, client: str) -> asyncio.Future[None] | None:
        """Take the turn if it is free: None. Otherwise what to await; to cancel it gives the turn on.

        Nobody waits behind `MAX_WAITING` calls of the same client: these are too many, as the caller is about to see.
        """
        now = perf_counter()
        if client != self._last_client:
            if self._last_client is not None:
                self._shared_until = now + SHARED_SECONDS
            self._last_client = client
        if now > self._shared_until:
            return None
        if not self._is_taken:
            self._is_taken = True
            self._turn_runs = True
            self._turn_began = now
            self._loop.call_soon(self._next)
            if now - self._handover_before > ALONE_SECONDS:
                return None
        waiting = self._waiting.get(client)
        if waiting is None:
            waiting = self._waiting[client] = deque()
            self._waiting.move_to_end(client, last=False)  # it has waited for its turn since before it came
        elif len(waiting) >= MAX_WAITING:
            return None
        turn = self._loop.create_future()
        waiting.append(turn)
        return turn

    def _next(self) -> None:
        """Once in each pass of the loop, for as long as calls wait."""
        now = perf_counter()
        if self._turn_runs:  # until this pass; no call could be handed over meanwhile
            self._turn_runs = False
            self._turn_seconds += (now - self._turn_began - self._turn_seconds) / 8
            self._last_turn = now
        if self._waiting:
            quiet_since = max(self._last_turn, self._last_handover)
            # On a machine that is busy with other things both turns and hops take longer.
            quiet_seconds = min(max(HANDOVER_SECONDS, self._turn_seconds / 2), LONGEST_HANDOVER_SECONDS)
            if now - quiet_since < quiet_seconds and now - self._last_turn < MAX_PAUSES * quiet_seconds:
                self._loop.call_soon(self._next)
                return
        while self._waiting:
            client, waiting = self._waiting.popitem(last=False)
            turn = waiting.popleft()
            if waiting:
                self._waiting[client] = waiting  # behind the others
            if not turn.done():  # its call was cancelled while it waited
                turn.set_result(None)
                self._turn_runs = True
                self._turn_began = now
                self._loop.call_soon(self._next)
                return
        self._is_taken = False
