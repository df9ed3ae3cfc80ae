"""The zero-copy route: kernels alone, which read and write L1 over the link."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.cuda.l1 import PinnedL1
from kernels.cuda.launches import BlockLaunches
from kernels.cuda.resources import Resources
from kernels.cuda.routes import Batch, Direction, Marks, Moves
from kernels.cuda.runtime import Event
from kernels.cuda.settings import CudaSettings
from kernels.cuda.steps import Step, chunk_bytes, cut_chunk
from kernels.cuda.tables import PlaneTables, Table


class ZeroCopyRoute:
    """One stream and no staging. A step is bounded all the same, so that a transfer can be stopped between two."""

    def __init__(
        self,
        resources: Resources,
        direction: Direction,
        planes: Sequence[PlaneTables],
        l1: PinnedL1,
        settings: CudaSettings,
    ) -> None:
        plans = [group.plan for group in planes]
        self.parts = cut_chunk(plans, settings.staging_bytes)
        self.chunks_per_step = max(1, settings.staging_bytes // chunk_bytes(plans))
        self._device = resources.device
        self._l1 = l1
        self._launches = BlockLaunches(resources.device, direction, planes, settings.max_ctas)
        self._stream = resources.stream()
        self.works = (self._launches.work,)

    def load(self, moves: Moves, table: Table) -> Batch:
        """See `Route`."""
        return self._launches.load(moves, moves.l1_offsets, self._l1.address(0), table, self._stream)

    def issue(self, step: Step, batch: Batch, marks: Sequence[Marks]) -> None:
        """See `Route`."""
        (mark,) = marks
        for move in step.moves:
            self._l1.register(int(batch.l1_offsets[move]) + step.part.offset_bytes, step.part.size_bytes)
        if mark.begin is not None:
            self._device.record(mark.begin, self._stream)
        self._launches.issue(step, batch, self._l1.address(0), self._stream)
        self._device.record(mark.end, self._stream)

    def mark(self, event: Event) -> None:
        """See `Route`."""
        self._device.record(event, self._stream)

    def drain(self) -> None:
        """See `Route`."""
        self._device.drain(self._stream)
