"""The slots whose bytes must be zeros before the slots are free."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from service.l1.chunk import Chunk
from service.l1.pool import Slot


class Unzeroed:
    """The slots of removed chunks that wait for zeros, and are taken until then. `added` is called for each new one."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.added: Callable[[], None] = lambda: None
        self._slots: dict[Slot[Chunk], None] = {}

    def __repr__(self) -> str:
        return f"<Unzeroed {len(self)} slots, {self.num_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot[Chunk]]:
        return iter(self._slots)

    def add(self, slot: Slot[Chunk]) -> None:
        """Add a slot that nothing reads or writes any more."""
        self._slots[slot] = None
        self.num_bytes += slot.size_bytes
        self.added()

    def remove(self, slot: Slot[Chunk]) -> None:
        """Remove a slot whose bytes are zeros."""
        del self._slots[slot]
        self.num_bytes -= slot.size_bytes

    def first(self, max_bytes: int) -> list[Slot[Chunk]]:
        """Return the first slots of at most `max_bytes` together, and one at least if there is any."""
        chosen: list[Slot[Chunk]] = []
        num_bytes = 0
        for slot in self._slots:
            num_bytes += slot.size_bytes
            if chosen and num_bytes > max_bytes:
                break
            chosen.append(slot)
        return chosen

    def check(self) -> None:
        """Assert that each slot is one of a removed chunk that nothing uses."""
        chunks = [slot.occupant for slot in self]
        assert all(chunk is not None and chunk.must_be_zeroed and chunk.removed for chunk in chunks)
        assert all(chunk is not None and not chunk.num_pins and chunk.pending_write is None for chunk in chunks)
        assert self.num_bytes == sum(slot.size_bytes for slot in self)
