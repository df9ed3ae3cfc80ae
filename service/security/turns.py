"""Turns: which call may begin next, so that one client's many calls don't stand before another's few.

A call's work on the event loop is done in one go, and calls begin in the order in which they came: a client with a
hundred calls under way would make each call of others wait for a hundred. So one call begins in each pass of the loop,
and clients take turns: what a call of a client waits for is at most one call of each other one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

MAX_WAITING = 1_024


class Turns:
    """Made on the event loop, which alone touches it. What clients are named by is the caller's business."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_taken = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Turns, {sum(map(len, self._waiting.values()))} calls of {len(self._waiting)} clients wait>"

    def take(self, client: str) -> asyncio.Future[None] | None:
        """Take the turn if it is free: None. Otherwise what to await; to cancel it gives the turn on.

        Nobody waits behind `MAX_WAITING` calls of the same client: these are too many, as the caller is about to see.
        """
        if not self._is_taken:
            self._is_taken = True
            self._loop.call_soon(self._next)
            return None
        waiting = self._waiting.get(client)
        if waiting is None:
            waiting = self._waiting[client] = deque()
        elif len(waiting) >= MAX_WAITING:
            return None
        turn = self._loop.create_future()
        waiting.append(turn)
        return turn

    def _next(self) -> None:
        """Once in a pass of the loop."""
        while self._waiting:
            client, waiting = self._waiting.popitem(last=False)
            turn = waiting.popleft()
            if waiting:
                self._waiting[client] = waiting  # behind the others
            if not turn.done():  # its call was cancelled while it waited
                turn.set_result(None)
                self._loop.call_soon(self._next)
                return
        self._is_taken = False
