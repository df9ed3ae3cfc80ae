"""The staging ring: kernels copy between blocks and staging buffers, the copy engine between these and L1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.cuda.batch import Batch, Direction, Marks, Moves
from kernels.cuda.l1 import PinnedL1
from kernels.cuda.launches import BlockLaunches
from kernels.cuda.resources import Resources
from kernels.cuda.runtime import Address, Event
from kernels.cuda.settings import CudaSettings
from kernels.cuda.steps import Step, chunk_bytes, cut_chunk, touched_bytes
from kernels.cuda.tables import PlaneTables, Table
from kernels.phases import Phase

_ALIGNMENT_BYTES = 256


@dataclass(slots=True, eq=False)
class _Slot:
    """A staging buffer. ``emptied`` is when its last step is done; before its first there is none."""

    address: Address
    emptied: Event | None = None


class StagingRing:
    """One direction of one attachment. What is issued is done in the order in which it was issued.

    Fills staging buffers on one stream and empties them on another. So the kernel of a step runs while the copy engine
    is at the step before, and the other way round for a retrieve. The copy engine moves parts of chunks, which are
    large: the link is full whatever the size of a run, and a few CTAs keep it so.

    ``works`` are the kinds of work that each step has, in the order in which they are done. ``parts`` are a chunk as it
    is cut into steps. ``chunks_per_step`` chunks go into a step: 1 if a chunk has several parts.
    """

    def __init__(
        self,
        resources: Resources,
        direction: Direction,
        planes: Sequence[PlaneTables],
        l1: PinnedL1,
        settings: CudaSettings,
    ) -> None:
        self._plans = plans = [group.plan for group in planes]
        self._pitch_bytes = -(-chunk_bytes(plans) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self.parts = cut_chunk(plans, settings.staging_bytes)
        self.chunks_per_step = max(1, settings.staging_bytes // self._pitch_bytes)
        slot_bytes = max(settings.staging_bytes, *(part.size_bytes for part in self.parts))
        self._slots = [_Slot(resources.memory(slot_bytes)) for _ in range(settings.staging_slots)]
        self._next_slot = 0
        self._device = resources.device
        self._l1 = l1
        self._launches = BlockLaunches(resources.device, direction, planes, settings.max_ctas)
        self._kernel_stream, self._copy_stream = resources.stream(), resources.stream()
        kernels, copies = (self._kernel_stream, self._run_kernels), (self._copy_stream, self._copy_to_host)
        if direction is Direction.STORE:
            self._filling, self._emptying = kernels, copies
            self.works = (self._launches.work, Phase.COPY)
        else:
            self._filling, self._emptying = (self._copy_stream, self._copy_to_device), kernels
            self.works = (Phase.COPY, self._launches.work)

    def load(self, moves: Moves, table: Table) -> Batch:
        """Writes the blocks of the moves into a table, and starts its upload."""
        chunk_starts = np.arange(len(moves)) % self.chunks_per_step * self._pitch_bytes
        return self._launches.load(moves, chunk_starts, table, self._kernel_stream)

    def issue(self, step: Step, batch: Batch, marks: Sequence[Marks]) -> None:
        """Starts to copy the step, with marks for each of `works`.

        The end of the last one happens when the step and all that was issued before is copied.
        """
        slot = self._slots[self._next_slot]
        self._next_slot = (self._next_slot + 1) % len(self._slots)
        (filling, fill), (emptying, empty) = self._filling, self._emptying
        filled, emptied = marks
        if slot.emptied is not None:
            self._device.wait(filling, slot.emptied)
        if filled.begin is not None:
            self._device.record(filled.begin, filling)
        fill(step, batch, slot)
        self._device.record(filled.end, filling)
        self._device.wait(emptying, filled.end)
        if emptied.begin is not None:
            self._device.record(emptied.begin, emptying)
        empty(step, batch, slot)
        self._device.record(emptied.end, emptying)
        # If this is recorded anew before the slot's turn comes, then by a later step of the same stream, which is
        # done no earlier.
        slot.emptied = emptied.end

    def mark(self, event: Event) -> None:
        """Has an event happen before whatever is issued from now on."""
        self._device.record(event, self._filling[0])

    def drain(self) -> None:
        """Waits until all that was issued is done. If this raises, it never will be, and nothing is touched."""
        self._device.drain(self._kernel_stream)
        self._device.drain(self._copy_stream)

    def _run_kernels(self, step: Step, batch: Batch, slot: _Slot) -> None:
        self._launches.issue(step, batch, slot.address - step.part.offset_bytes, self._kernel_stream)

    def _copy_to_host(self, step: Step, batch: Batch, slot: _Slot) -> None:
        for staged, in_l1, size_bytes in self._pieces(step, batch, slot):
            self._device.copy_to_host(in_l1, staged, size_bytes, self._copy_stream)

    def _copy_to_device(self, step: Step, batch: Batch, slot: _Slot) -> None:
        for staged, in_l1, size_bytes in self._pieces(step, batch, slot):
            self._device.copy_to_device(staged, in_l1, size_bytes, self._copy_stream)

    def _pieces(self, step: Step, batch: Batch, slot: _Slot) -> Iterator[tuple[Address, Address, int]]:
        """What is contiguous on both sides of a copy: where it is staged, where it is in L1, how many bytes."""
        for number, move in enumerate(step.moves):
            staged = slot.address + number * self._pitch_bytes
            l1_offset = int(batch.l1_offsets[move]) + step.part.offset_bytes
            num_blocks = [int(blocks.starts[move + 1] - blocks.starts[move]) for blocks in batch.blocks]
            for first, end in touched_bytes(step.part, self._plans, num_blocks):
                self._l1.register(l1_offset + first, end - first)
                for at, size_bytes in self._l1.cut(l1_offset + first, end - first):
                    yield Address(staged + at - l1_offset), self._l1.address(at), size_bytes
