"""The last batches, for readers that ask for them again."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class Sent(NamedTuple):
    """A batch that was sent."""

    topic: bytes
    number: int
    payload: bytes


class Ring:
    """The last batches, at most `max_batches` with `max_bytes`; the newest one always. For any thread."""

    def __init__(self, max_bytes: int, max_batches: int = 10_000) -> None:
        self._max_bytes = max_bytes
        self._max_batches = max_batches
        self._sent: deque[Sent] = deque()
        self._num_bytes = 0
        self._next_number = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Ring {len(self._sent)} batches, {self._num_bytes}/{self._max_bytes} bytes>"

    @property
    def num_bytes(self) -> int:
        """The bytes of the batches."""
        return self._num_bytes

    def append(self, sent: Sent) -> None:
        """Add the next batch. The oldest ones leave for it."""
        with self._lock:
            self._sent.append(sent)
            self._num_bytes += len(sent.payload)
            self._next_number = sent.number + 1
            while len(self._sent) > self._max_batches or (self._num_bytes > self._max_bytes and len(self._sent) > 1):
                self._num_bytes -= len(self._sent.popleft().payload)

    def since(self, number: int) -> tuple[Sequence[Sent], bool]:
        """Return the batches from a number on, and whether these are all that there were.

        A number that no batch has had yet is one of an earlier depot: then all batches are missing.
        """
        with self._lock:
            sent = [each for each in self._sent if each.number >= number]
            oldest = self._sent[0].number if self._sent else self._next_number
            return sent, oldest <= number <= self._next_number
