"""Limits the bytes of requests: of those that arrive at the same time, and of those that running calls keep.

gRPC takes at most 64 KiB of a message until its call asks for it; the rest waits in the client. The length of a message
is unknown before it has arrived. So a call reserves the longest message first, and later what its message has.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from typing import Self

UNREAD_BYTES = 64 << 10  # that gRPC takes of a message before its call asks for it


class InflightBytes:
    """Bytes for `num_messages` of the longest messages. One client gets at most half of them.

    Clients that wait get bytes round robin. Only the event loop uses this.
    """

    def __init__(self, num_messages: int, max_message_bytes: int) -> None:
        self.max_message_bytes = max_message_bytes
        self.reserved_bytes = 0
        self.num_large = 0
        """Received requests that were larger than `UNREAD_BYTES`."""
        self._size_bytes = num_messages * max_message_bytes
        self._share_bytes = max(num_messages // 2, 1) * max_message_bytes
        self._bytes_by_client: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def __repr__(self) -> str:
        num_waiting = sum(map(len, self._waiting.values()))
        return f"<InflightBytes {self.reserved_bytes}/{self._size_bytes} bytes, {num_waiting} calls wait>"

    def reservation(self, client: str) -> Reservation:
        """Return an empty reservation for one request of a client."""
        return Reservation(self, client)

    def fits(self, client: str, num_bytes: int) -> bool:
        """Return whether a client may reserve `num_bytes` more."""
        return (
            self.reserved_bytes + num_bytes <= self._size_bytes
            and self._bytes_by_client[client] + num_bytes <= self._share_bytes
        )

    def add(self, client: str, num_bytes: int) -> None:
        """Count `num_bytes` more for a client. A negative number gives bytes back, to calls that wait."""
        self.reserved_bytes += num_bytes
        self._bytes_by_client[client] += num_bytes
        if not self._bytes_by_client[client]:
            del self._bytes_by_client[client]
        if num_bytes < 0 and self._waiting:
            self._wake()

    def try_reserve(self, client: str) -> bool:
        """Reserve the longest message if it fits and no other call of the client waits. Return whether it did."""
        if client in self._waiting or not self.fits(client, self.max_message_bytes):
            return False
        self.add(client, self.max_message_bytes)
        return True

    async def wait(self, client: str) -> None:
        """Wait until the longest message fits, and reserve it."""
        granted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._wake()  # it may have stood before calls of other clients
            else:
                self.add(client, -self.max_message_bytes)
            raise

    def _wake(self) -> None:
        num_woken = -1
        while num_woken:
            num_woken = sum(self._wake_one(client) for client in list(self._waiting))

    def _wake_one(self, client: str) -> bool:
        """Reserve for the first call of a client that waits, if it fits. Return whether it did."""
        waiting = self._waiting[client]
        while waiting and waiting[0].done():  # cancelled
            waiting.popleft()
        can_begin = bool(waiting) and self.fits(client, self.max_message_bytes)
        if can_begin:
            self.add(client, self.max_message_bytes)
            waiting.popleft().set_result(None)
            self._waiting.move_to_end(client)
        if not waiting:
            del self._waiting[client]
        return can_begin


class Reservation:
    """The bytes that one call has reserved. They are given back at the end of its `with` block."""

    __slots__ = ("_client", "_inflight", "num_bytes")

    def __init__(self, inflight: InflightBytes, client: str) -> None:
        self.num_bytes = 0
        self._inflight = inflight
        self._client = client

    async def reserve(self) -> None:
        """Reserve the longest message; wait until it fits."""
        if not self._inflight.try_reserve(self._client):
            await self._inflight.wait(self._client)
        self.num_bytes = self._inflight.max_message_bytes

    def shrink(self, num_bytes: int) -> None:
        """Keep `num_bytes`, the length of the message that has arrived."""
        self._inflight.num_large += num_bytes > UNREAD_BYTES
        self._inflight.add(self._client, num_bytes - self.num_bytes)
        self.num_bytes = num_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inflight.add(self._client, -self.num_bytes)
        self.num_bytes = 0
