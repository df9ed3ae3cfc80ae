"""Launches of the kernels: one for each group that a step touches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.cuda.batch import Batch, Direction, Moves
from kernels.cuda.kernel import BlockCopy, access_bytes
from kernels.cuda.runtime import CudaDevice, Stream
from kernels.cuda.steps import Step
from kernels.cuda.tables import BlockTables, PlaneTables, Table, copy_of, offsets_of
from kernels.phases import Phase


class BlockLaunches:
    """The launches between blocks and chunks in one direction; ``work`` is what they are."""

    def __init__(self, device: CudaDevice, direction: Direction, planes: Sequence[PlaneTables], max_ctas: int) -> None:
        is_store = direction is Direction.STORE
        self.work = Phase.GATHER if is_store else Phase.SCATTER
        self._launch: Callable[[BlockCopy, int, Stream], None] = device.gather if is_store else device.scatter
        self._planes = planes
        self._max_ctas = max_ctas

    def load(self, moves: Moves, chunk_starts: NDArray[np.int64], table: Table, stream: Stream) -> Batch:
        """Uploads the blocks of moves. Their chunks begin at ``chunk_starts``, counted from the base of `issue`.

        That base is aligned to the widest access, so that it does not count here: memory of the device is, and a part
        begins where a plane does.
        """
        table.clear()
        blocks = []
        for planes, moved in zip(self._planes, moves.blocks, strict=True):
            offsets = offsets_of(planes.plan, moved, chunk_starts)
            width = access_bytes(planes.plan, planes.plane_addresses, 0, offsets)
            blocks.append(BlockTables(moved.starts, table.append(moved.ids), table.append(offsets), width))
        table.upload(stream)
        return Batch(moves.l1_offsets, blocks)

    def issue(self, step: Step, batch: Batch, chunks_base: int, stream: Stream) -> None:
        """Starts to copy between the blocks of a step and its chunks."""
        for group, plane_range in step.part.planes:
            copy = copy_of(self._planes[group], batch.blocks[group], plane_range, step.moves, chunks_base)
            if copy is not None:
                self._launch(copy, self._max_ctas, stream)
