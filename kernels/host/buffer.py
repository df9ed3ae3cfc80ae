"""An engine's paged buffer in the host's memory, and L1."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.checksum import kvsum64
from kernels.copies import ChunkCopy, Copies, checked_copies
from kernels.geometry import Group
from kernels.host.block_views import Blocks, Bytes, Span, pieces, spans
from kernels.host.copy_pool import CopyPool, HostTransfer
from kernels.host.streaming_copy import Copy
from kernels.map import Mapping
from kernels.plan import chunk_bytes, plan_groups

# A thread holds the GIL while it asks for its next piece. Large pieces make it ask seldom, small ones make all threads
# end at the same time.
_MAX_PIECE_BYTES = 8 << 20
_MIN_PIECE_BYTES = 1 << 20
_PIECES_PER_THREAD = 8


class HostL1:
    """The arena of L1, with the threads that copy into it and out of it.

    Each direction has `num_threads` threads of its own, so that neither waits for the other.
    """

    def __init__(self, memory: Bytes, num_threads: int) -> None:
        self.memory = memory
        self.num_threads = num_threads
        self.stores = CopyPool("store", num_threads)
        self.retrieves = CopyPool("retrieve", num_threads)

    def close(self) -> None:
        """Cancel what runs, wait for its end, end the threads, and release the arena."""
        self.stores.close()
        self.retrieves.close()
        self.memory = np.empty(0, dtype=np.uint8)


class HostBuffer:
    """An engine's paged buffer, mapped; valid until `close`."""

    transfer_backend = "host"
    can_wait_for_events = False

    def __init__(self, groups: Sequence[Group], mapping: Mapping, chunk_size: int, l1: HostL1, copy: Copy) -> None:
        self.chunk_bytes = chunk_bytes(groups, chunk_size)
        self.plans = plan_groups(groups, chunk_size)
        self.spans: tuple[tuple[Span, ...], ...] = ()
        if mapping.mapped_bytes:
            memory, offsets = mapping.memory(), np.array(mapping.offsets, dtype=np.int64)
            self.spans = tuple(spans(plan, memory, offsets) for plan in self.plans)
        self._mapping = mapping
        self._l1 = l1
        self._copy = copy

    def __repr__(self) -> str:
        return f"<HostBuffer {self.mapped_bytes} bytes>"

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the engine's memory that are mapped."""
        return self._mapping.mapped_bytes

    @property
    def objects(self) -> frozenset[Hashable]:
        """The mapped objects, by device and inode. Two buffers with a common one share memory."""
        return self._mapping.objects

    def check_size(self) -> None:
        """Check before each transfer that the engine has not resized an object.

        Raises: RegionError.
        """
        self._mapping.check_size()

    def store(self, copies: Sequence[ChunkCopy], ready_event: bytes = b"") -> HostTransfer:
        """Start to copy blocks into chunks. Each copy must fit the buffer and the arena; otherwise nothing is written.

        Raises: ValueError.
        """
        checked, foreign = self._checked(copies, ready_event), self._mapping.addresses
        return self._l1.stores.start(
            (functools.partial(self._copy, chunk, blocks, foreign) for blocks, chunk in self._cut(checked)),
            functools.partial(self._checksums, checked),
        )

    def retrieve(self, copies: Sequence[ChunkCopy], ready_event: bytes = b"") -> HostTransfer:
        """Start to copy chunks into blocks. Each copy must fit the buffer and the arena; otherwise nothing is written.

        Raises: ValueError.
        """
        checked, foreign = self._checked(copies, ready_event), self._mapping.addresses
        return self._l1.retrieves.start(
            (functools.partial(self._copy, blocks, chunk, foreign) for blocks, chunk in self._cut(checked)),
            functools.partial(self._checksums, checked),
        )

    def close(self) -> None:
        """Unmap the memory. The caller makes sure that no transfer of this buffer runs."""
        self.spans = ()
        self._mapping.close()

    def _checked(self, copies: Sequence[ChunkCopy], ready_event: bytes) -> Copies:
        """Check the copies.

        Raises: ValueError.
        """
        if ready_event:
            raise ValueError("memory of the host has no CUDA events")
        if not self.spans:
            raise ValueError("the buffer is not mapped")
        return checked_copies(self.plans, self.chunk_bytes, self._l1.memory.size, copies)

    def _checksums(self, copies: Copies) -> NDArray[np.uint64]:
        """Return the checksums of the chunks that are to have one, read from L1."""
        checksums = np.zeros(len(copies), np.uint64)
        for number in np.flatnonzero(copies.with_checksum):
            start = int(copies.l1_offsets[number])
            checksums[number] = kvsum64(self._l1.memory[start : start + self.chunk_bytes])
        return checksums

    def _cut(self, copies: Copies) -> Iterator[tuple[Blocks, Blocks]]:
        """Cut copies into pieces: the engine's side with the chunk's side."""
        share_bytes = len(copies) * self.chunk_bytes // (self._l1.num_threads * _PIECES_PER_THREAD)
        piece_bytes = min(max(share_bytes, _MIN_PIECE_BYTES), _MAX_PIECE_BYTES)
        for number, l1_offset_bytes in enumerate(copies.l1_offsets.tolist()):
            for group_spans, group_blocks in zip(self.spans, copies.blocks, strict=True):
                for span in group_spans:
                    chunk = span.chunk_blocks(self._l1.memory, l1_offset_bytes)
                    yield from pieces(span, chunk, group_blocks.of_copy(number), piece_bytes)
