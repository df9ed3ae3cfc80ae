"""An engine's paged buffer in the host's memory, and L1."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from kernels.checksum import WORD_BYTES
from kernels.copies import ChunkCopy, Copies, checked_copies
from kernels.geometry import Group
from kernels.host.block_views import Bytes, Span, pieces, spans
from kernels.host.chunk_sums import ChunkSums, has_whole_words, rows_before, slices
from kernels.host.copy_pool import CopyPool, HostTransfer, Piece
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
        self._has_whole_words = has_whole_words(self.plans)

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
        checked = self._checked(copies, ready_event)
        sums = ChunkSums(len(checked), self._copy)
        return self._l1.stores.start(
            self._pieces(checked, sums, is_store=True), self._reads(checked, sums), sums.totals
        )

    def retrieve(self, copies: Sequence[ChunkCopy], ready_event: bytes = b"") -> HostTransfer:
        """Start to copy chunks into blocks. Each copy must fit the buffer and the arena; otherwise nothing is written.

        Raises: ValueError.
        """
        checked = self._checked(copies, ready_event)
        sums = ChunkSums(len(checked), self._copy)
        all_pieces = itertools.chain(self._reads(checked, sums), self._pieces(checked, sums, is_store=False))
        return self._l1.retrieves.start(all_pieces, sum_up=sums.totals)

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

    def _pieces(self, copies: Copies, sums: ChunkSums, *, is_store: bool) -> Iterator[Piece]:
        """Yield the pieces of all copies. Where copies can sum runs, a chunk's pieces make its checksum."""
        foreign, piece_bytes = self._mapping.addresses, self._piece_bytes(len(copies))
        for number, l1_offset_bytes in enumerate(copies.l1_offsets.tolist()):
            chunk = self._chunk(l1_offset_bytes)
            is_summed = self._has_whole_words and bool(copies.with_checksum[number])
            copy = functools.partial(sums.copy, number, chunk.ctypes.data) if is_summed else self._copy
            for group, group_spans in enumerate(self.spans):
                block_ids = copies.blocks[group].of_copy(number)
                for span in group_spans:
                    in_chunk = span.chunk_blocks(self._l1.memory, l1_offset_bytes)
                    for blocks, chunk_blocks in pieces(span, in_chunk, block_ids, piece_bytes):
                        to, source = (chunk_blocks, blocks) if is_store else (blocks, chunk_blocks)
                        yield functools.partial(copy, to, source, foreign)
                if is_summed:
                    for rows, offset in rows_before(self.plans[group], chunk, len(block_ids), piece_bytes):
                        yield functools.partial(sums.read, number, rows, offset)

    def _reads(self, copies: Copies, sums: ChunkSums) -> Iterator[Piece]:
        """Yield pieces that read the chunks that are to have a checksum, where copies can't sum runs."""
        if self._has_whole_words:
            return
        for number in np.flatnonzero(copies.with_checksum).tolist():
            for rows, offset in slices(self._chunk(int(copies.l1_offsets[number])), _MIN_PIECE_BYTES):
                yield functools.partial(sums.read, number, rows, offset)

    def _chunk(self, l1_offset_bytes: int) -> Bytes:
        return self._l1.memory[l1_offset_bytes : l1_offset_bytes + self.chunk_bytes]

    def _piece_bytes(self, num_copies: int) -> int:
        share_bytes = num_copies * self.chunk_bytes // (self._l1.num_threads * _PIECES_PER_THREAD)
        return min(max(share_bytes, _MIN_PIECE_BYTES), _MAX_PIECE_BYTES) // WORD_BYTES * WORD_BYTES
