"""The chunks that a tenant's pins hold: which pins hold each, and their bytes in all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from service.depot.pin import Pin
from service.depot.pin_bounds import PinBounds
from service.errors import PinLimitExceeded
from service.l1.chunk import Chunk

MAX_CHUNKS = 65_536
"""Chunks of all pins of a tenant; one that several pins hold counts for each of them. A chunk takes some 300 bytes."""


class HeldChunks:
    """The chunks of a tenant's pins. A chunk that several pins hold counts once in the bytes.

    `max_bytes` returns the tenant's bound, which the file of tenants may change.
    """

    def __init__(self, bounds: PinBounds, tenant: str, max_bytes: Callable[[], int]) -> None:
        self._bounds = bounds
        self._tenant = tenant
        self._max_bytes = max_bytes
        self._holders: dict[Chunk, list[Pin]] = {}
        self._num_held = 0

    def __len__(self) -> int:
        return len(self._holders)

    def __repr__(self) -> str:
        return f"<HeldChunks {len(self._holders)} chunks, {self.num_bytes} bytes>"

    @property
    def num_bytes(self) -> int:
        """The bytes of the slots of all chunks."""
        return self._bounds.bytes_by_tenant[self._tenant]

    def holders(self, chunk: Chunk) -> Sequence[Pin]:
        """Return the pins that hold a chunk."""
        return tuple(self._holders.get(chunk, ()))

    def limit(self, what: str, needed_bytes: int = 0) -> PinLimitExceeded:
        """Return the error of a pin that would pass a bound."""
        return PinLimitExceeded(what, needed_bytes, self.num_bytes, self._max_bytes())

    def check_bounds(self, pin: Pin | None, chunks: Iterable[Chunk], loading: Sequence[int]) -> None:
        """Check that a pin (None: a new one) may hold chunks, and others of `loading` bytes each that L1 lacks.

        Raises: PinLimitExceeded.
        """
        num_more, needed_bytes = len(loading), sum(loading)
        for chunk in chunks:
            holders = self._holders.get(chunk, ())
            num_more += pin not in holders
            needed_bytes += 0 if holders else chunk.slot.size_bytes
        if needed_bytes > max(0, self._max_bytes() - self.num_bytes):  # below 0 after a new file of tenants
            raise self.limit(f"the pin needs {needed_bytes} bytes more of L1", needed_bytes)
        if needed_bytes > self._bounds.free_bytes(self._tenant):  # how much is free would say what others have pinned
            raise self.limit(f"no {needed_bytes} bytes more of L1 can be pinned at the moment", needed_bytes)
        if self._num_held + num_more > MAX_CHUNKS:
            raise self.limit(f"the pins of a tenant hold {MAX_CHUNKS} chunks at most", needed_bytes)

    def add(self, pin: Pin, chunk: Chunk) -> None:
        """Note that a pin holds a chunk which it did not hold."""
        holders = self._holders.get(chunk)
        if holders is None:
            holders = self._holders[chunk] = []
            self._bounds.bytes_by_tenant[self._tenant] += chunk.slot.size_bytes
        holders.append(pin)
        self._num_held += 1

    def remove(self, pin: Pin, chunks: Iterable[Chunk]) -> None:
        """Note that a pin does not hold chunks any more."""
        for chunk in chunks:
            holders = self._holders[chunk]
            holders.remove(pin)
            self._num_held -= 1
            if not holders:
                del self._holders[chunk]
                self._bounds.bytes_by_tenant[self._tenant] -= chunk.slot.size_bytes

    def check(self) -> None:
        """Assert the invariants, which hold after every step."""
        assert self._num_held == sum(map(len, self._holders.values()))
        assert not any(chunk.removed for chunk in self._holders), "a chunk that was removed is pinned"
        assert all(chunk.num_pins >= len(pins) > 0 for chunk, pins in self._holders.items())
        assert self.num_bytes == sum(chunk.slot.size_bytes for chunk in self._holders)
