"""Room for requests: how many bytes of messages arrive at once, and stay while their calls run.

A message waits in the client until its call asks for it: gRPC takes at most 64 KiB of it before. Its length is not
known before it has arrived. Until then a call has room for the longest message, and afterwards for its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from types import TracebackType
from typing import Self

UNREAD_BYTES = 64 << 10  # that gRPC takes of a message unasked


class Room:
    """Room for `num_messages` of the longest messages. One client has at most half of it.

    Calls of several clients get room in turns. The event loop alone touches it.
    """

    def __init__(self, num_messages: int, max_message_bytes: int) -> None:
        self.max_message_bytes = max_message_bytes
        self.taken_bytes = 0
        self.num_large = 0
        """Requests that were received and were larger than what gRPC takes of a request unasked."""
        self._size_bytes = num_messages * max_message_bytes
        self._share_bytes = max(num_messages // 2, 1) * max_message_bytes
        self._taken_bytes_by_client: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Room {self.taken_bytes}/{self._size_bytes} bytes, {sum(map(len, self._waiting.values()))} calls wait>"

    def of(self, client: str) -> Place:
        """A place for one request of a client; it is empty."""
        return Place(self, client)

    def fits(self, client: str, num_bytes: int) -> bool:
        """Whether a client may take so many bytes more."""
        return (
            self.taken_bytes + num_bytes <= self._size_bytes
            and self._taken_bytes_by_client[client] + num_bytes <= self._share_bytes
        )

    def take(self, client: str, num_bytes: int) -> None:
        """Count bytes; fewer than 0 are given back, to calls that wait."""
        self.taken_bytes += num_bytes
        self._taken_bytes_by_client[client] += num_bytes
        if not self._taken_bytes_by_client[client]:
            del self._taken_bytes_by_client[client]
        if num_bytes < 0 and self._waiting:
            self._wake()

    async def wait(self, client: str) -> None:
        """Take room for the longest message, when there is some; a call that is cancelled meanwhile has none."""
        if client not in self._waiting and self.fits(client, self.max_message_bytes):
            self.take(client, self.max_message_bytes)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.take(client, -self.max_message_bytes)
            else:
                self._wake()  # it may have stood before others
            raise

    def _wake(self) -> None:
        num_woken = -1
        while num_woken:
            num_woken = sum(self._wake_one(client) for client in list(self._waiting))

    def _wake_one(self, client: str) -> bool:
        """Give room to a client's first call that waits; whether there was one, and room for it."""
        waiting = self._waiting[client]
        while waiting and waiting[0].done():  # cancelled
            waiting.popleft()
        can_begin = bool(waiting) and self.fits(client, self.max_message_bytes)
        if can_begin:
            self.take(client, self.max_message_bytes)
            waiting.popleft().set_result(None)
            self._waiting.move_to_end(client)
        if not waiting:
            del self._waiting[client]
        return can_begin


class Place:
    """Room that one call has; given back at the end of its ``with`` block."""

    def __init__(self, room: Room, client: str) -> None:
        self._room = room
        self._client = client
        self._num_bytes = 0

    @property
    def is_taken(self) -> bool:
        """Whether there was room."""
        return self._num_bytes > 0

    async def take(self) -> None:
        """Wait for room for the longest message."""
        await self._room.wait(self._client)
        self._num_bytes = self._room.max_message_bytes

    def shrink(self, num_bytes: int) -> None:
        """Keep what the message that has arrived needs."""
        self._room.num_large += num_bytes > UNREAD_BYTES
        self._room.take(self._client, num_bytes - self._num_bytes)
        self._num_bytes = num_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shrink(0)
