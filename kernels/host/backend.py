"""The host backend: blocks and chunks that are both in this machine's memory, copied by threads."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np

from kernels.block_copy import MovedBlocks, checked_blocks
from kernels.errors import BackendUnavailable
from kernels.geometry import Group, Region
from kernels.host.block_views import Blocks, Span, pieces, spans
from kernels.host.streaming_copy import Copy, best_copy
from kernels.map import Mapping, Reserve
from kernels.plan import check_groups, chunk_bytes, plan_groups
from kernels.transfer import ChunkCopy, CopyPool, Transfer

# A thread asks for the next piece with the GIL in its hand: large ones ask seldom, small ones end at the same time.
_MAX_PIECE_BYTES = 8 << 20
_MIN_PIECE_BYTES = 1 << 20
_PIECES_PER_THREAD = 8


class HostBuffer:
    """An engine's paged buffer, mapped; valid until `close`."""

    transfer_backend = "host"

    def __init__(self, groups: Sequence[Group], mapping: Mapping, chunk_size: int) -> None:
        self.chunk_bytes = chunk_bytes(groups, chunk_size)
        self.plans = plan_groups(groups, chunk_size)
        self.spans: tuple[tuple[Span, ...], ...] = ()
        if mapping.mapped_bytes:
            memory, offsets = mapping.memory(), np.array(mapping.offsets, dtype=np.int64)
            self.spans = tuple(spans(plan, memory, offsets) for plan in self.plans)
        self._mapping = mapping

    def __repr__(self) -> str:
        return f"<HostBuffer {self.mapped_bytes} bytes>"

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the engine's memory that are mapped."""
        return self._mapping.mapped_bytes

    @property
    def addresses(self) -> range:
        """Where the engine's memory is in this process."""
        return self._mapping.addresses

    @property
    def objects(self) -> frozenset[Hashable]:
        """The objects that are mapped, by device and inode: two buffers that share one share memory."""
        return self._mapping.objects

    def check_size(self) -> None:
        """Raises RegionUnavailable if the engine changed the size of an object; to be asked before each transfer."""
        self._mapping.check_size()

    def close(self) -> None:
        """Unmaps the memory at once. The caller sees to it that no transfer of this buffer is running."""
        self.spans = ()
        self._mapping.close()


class HostBackend:
    """Copies between engines' blocks and the L1 arena without the GIL.

    ``l1`` is the whole arena, writable. Stores and retrieves have ``num_threads`` threads each, so that neither waits
    for the other. ``copy`` copies; by default it is the quickest that there is. Where there is none, no memory can be
    attached. ``reserve`` sets memory aside before pages of an engine's memory are made.
    """

    name = "host"

    def __init__(
        self, l1: memoryview, num_threads: int, copy: Copy | None = None, reserve: Reserve = nullcontext
    ) -> None:
        if l1.readonly:
            raise ValueError("the L1 arena is not writable")
        self._copy, self._why_no_copy = copy, ""
        if copy is None:
            try:
                self._copy = best_copy()
            except BackendUnavailable as error:
                self._why_no_copy = str(error)
        self._reserve = reserve
        self._l1 = np.frombuffer(l1, dtype=np.uint8)
        self._num_threads = num_threads
        self._stores = CopyPool("store", num_threads)
        self._retrieves = CopyPool("retrieve", num_threads)

    def attach(
        self, groups: Sequence[Group], regions: Sequence[Region], chunk_size: int, *, allow_process_fd: bool
    ) -> HostBuffer:
        """Maps an engine's buffer and populates the mapping, which takes a while: call it in a thread.

        Raises:
            GeometryError: see `check_groups`.
            RegionUnavailable, RegionForbidden, BackendUnavailable, GeometryError: see `Mapping`.
        """
        check_groups(groups, [region.size_bytes for region in regions], chunk_size)
        if regions:
            self._require_copy()
        mapping = Mapping(regions, allow_process_fd=allow_process_fd, reserve=self._reserve)
        return HostBuffer(groups, mapping, chunk_size)

    def gather(self, buffer: HostBuffer, moves: Sequence[ChunkCopy]) -> Transfer:
        """Starts to copy blocks into chunks.

        Raises:
            ValueError: a move does not fit the buffer or the arena. Nothing was written.
        """
        copy, pairs, foreign = self._require_copy(), self._pairs(buffer, moves), buffer.addresses
        return self._stores.start(functools.partial(copy, chunk, blocks, foreign) for blocks, chunk in pairs)

    def scatter(self, buffer: HostBuffer, moves: Sequence[ChunkCopy]) -> Transfer:
        """Starts to copy chunks into blocks.

        Raises:
            ValueError: a move does not fit the buffer or the arena. Nothing was written.
        """
        copy, pairs, foreign = self._require_copy(), self._pairs(buffer, moves), buffer.addresses
        return self._retrieves.start(functools.partial(copy, blocks, chunk, foreign) for blocks, chunk in pairs)

    def close(self) -> None:
        """Cancels what is running, waits for it, ends the threads, lets go of the arena."""
        self._stores.close()
        self._retrieves.close()
        self._l1 = np.empty(0, dtype=np.uint8)

    def _require_copy(self) -> Copy:
        if self._copy is None:
            raise BackendUnavailable(f"memory of the host can't be copied: no compiler, and {self._why_no_copy}")
        return self._copy

    def _pairs(self, buffer: HostBuffer, moves: Sequence[ChunkCopy]) -> Iterator[tuple[Blocks, Blocks]]:
        """The engine's side with the chunk's side of each piece; checked here and now."""
        if not buffer.spans:
            raise ValueError("the buffer is not mapped")
        blocks = checked_blocks(buffer.plans, buffer.chunk_bytes, self._l1.size, moves)
        return self._cut(buffer, moves, blocks)

    def _cut(
        self, buffer: HostBuffer, moves: Sequence[ChunkCopy], blocks: Sequence[MovedBlocks]
    ) -> Iterator[tuple[Blocks, Blocks]]:
        share_bytes = len(moves) * buffer.chunk_bytes // (self._num_threads * _PIECES_PER_THREAD)
        piece_bytes = min(max(share_bytes, _MIN_PIECE_BYTES), _MAX_PIECE_BYTES)
        for index, move in enumerate(moves):
            for group_spans, group_blocks in zip(buffer.spans, blocks, strict=True):
                for span in group_spans:
                    chunk = span.chunk_blocks(self._l1, move.l1_offset_bytes)
                    yield from pieces(span, chunk, group_blocks.of_move(index), piece_bytes)
