"""The staging ring: kernels copy between blocks and staging buffers, the copy engine between these and L1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.copies import Copies
from kernels.cuda.launches import BlockLaunches
from kernels.cuda.pinned_l1 import PinnedL1
from kernels.cuda.resources import Resources
from kernels.cuda.runtime import Address, Event
from kernels.cuda.settings import CudaSettings
from kernels.cuda.steps import Step, chunk_bytes, cut_chunk, touched_bytes
from kernels.cuda.uploads import PlaneArrays, UploadBuffer, UploadedCopies
from kernels.transfer import Direction, Phase

_ALIGNMENT_BYTES = 256

StepEvents = Sequence[tuple[Event, Event]]
"""The timing events of a step: for each phase one for its begin and one for its end."""


@dataclass(slots=True, eq=False)
class _Slot:
    """A staging buffer. `emptied` happens when its last step is done; it is None before the first step."""

    address: Address
    emptied: Event | None = None


class StagingRing:
    """The staging buffers of one direction of an attachment. It carries out steps in the order of their issue.

    One stream fills staging buffers and another one empties them. So the kernel of a step runs while the copy engine
    works at the step before, or the other way round for a retrieve. The copy engine copies parts of chunks, which are
    large. That keeps the link full whatever the size of a run, and needs only a few CTAs.

    `phases` are those of each step, in their order. `parts` are what a chunk is cut into. A step has
    `chunks_per_step` chunks, which is 1 if a chunk has several parts. `are_summed[group]` says whether the kernels can
    sum the bytes of a group.
    """

    def __init__(
        self,
        resources: Resources,
        direction: Direction,
        planes: Sequence[PlaneArrays],
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
        self._launches = BlockLaunches(resources.device, direction, planes, settings.max_ctas, self._pitch_bytes)
        self.are_summed = self._launches.are_summed
        self._kernel_stream, self._copy_stream = resources.stream(), resources.stream()
        kernels, copies = (self._kernel_stream, self._run_kernels), (self._copy_stream, self._copy_to_host)
        if direction is Direction.STORE:
            self._filling, self._emptying = kernels, copies
            self.phases = (self._launches.phase, Phase.COPY)
        else:
            self._filling, self._emptying = (self._copy_stream, self._copy_to_device), kernels
            self.phases = (Phase.COPY, self._launches.phase)

    def upload(self, copies: Copies, buffer: UploadBuffer) -> UploadedCopies:
        """Start to upload the blocks of copies through a free buffer."""
        chunks = np.arange(len(copies)) % self.chunks_per_step
        return self._launches.upload(copies, chunks, buffer, self._kernel_stream)

    def issue(
        self,
        step: Step,
        copies: UploadedCopies,
        events: StepEvents,
        *,
        record_begins: bool,
        to_download: UploadBuffer | None = None,
    ) -> None:
        """Start to carry out a step, and record its events. Those of the begins are recorded only if `record_begins`.

        With the last step of an upload, `to_download` is its buffer: the buffer's sums go back to the host.

        The last event happens when the step, and all that was issued before it, is done.
        """
        slot = self._slots[self._next_slot]
        self._next_slot = (self._next_slot + 1) % len(self._slots)
        (filling, fill), (emptying, empty) = self._filling, self._emptying
        (fill_begins, filled), (empty_begins, emptied) = events
        if slot.emptied is not None:
            self._device.wait(filling, slot.emptied)
        if record_begins:
            self._device.record(fill_begins, filling)
        fill(step, copies, slot)
        self._device.record(filled, filling)
        self._device.wait(emptying, filled)
        if record_begins:
            self._device.record(empty_begins, emptying)
        empty(step, copies, slot)
        if to_download is not None and copies.sums is not None:
            to_download.download(copies.sums, emptying)
        self._device.record(emptied, emptying)
        # A later step may record this event again before the slot is used again. That step is on the same stream, so
        # it is done no earlier.
        slot.emptied = emptied

    def record(self, event: Event) -> None:
        """Record an event ahead of all that is issued later."""
        self._device.record(event, self._filling[0])

    def drain(self) -> None:
        """Wait until all that was issued is done. After an error the device touches nothing more.

        Raises: CudaError.
        """
        self._device.drain(self._kernel_stream)
        self._device.drain(self._copy_stream)

    def _run_kernels(self, step: Step, copies: UploadedCopies, slot: _Slot) -> None:
        self._launches.issue(step, copies, slot.address - step.part.offset_bytes, self._kernel_stream)

    def _copy_to_host(self, step: Step, copies: UploadedCopies, slot: _Slot) -> None:
        for staged, in_l1, size_bytes in self._contiguous(step, copies, slot):
            self._device.copy_to_host(in_l1, staged, size_bytes, self._copy_stream)

    def _copy_to_device(self, step: Step, copies: UploadedCopies, slot: _Slot) -> None:
        for staged, in_l1, size_bytes in self._contiguous(step, copies, slot):
            self._device.copy_to_device(staged, in_l1, size_bytes, self._copy_stream)

    def _contiguous(self, step: Step, copies: UploadedCopies, slot: _Slot) -> Iterator[tuple[Address, Address, int]]:
        """Yield what is contiguous both in the slot and in L1: its address in each, and its size in bytes."""
        for number, copy in enumerate(step.copies):
            staged = slot.address + number * self._pitch_bytes
            l1_offset = int(copies.l1_offsets[copy]) + step.part.offset_bytes
            num_blocks = [int(blocks.starts[copy + 1] - blocks.starts[copy]) for blocks in copies.blocks]
            for first, end in touched_bytes(step.part, self._plans, num_blocks):
                self._l1.register(l1_offset + first, end - first)
                for at, size_bytes in self._l1.cut(l1_offset + first, end - first):
                    yield Address(staged + at - l1_offset), self._l1.address(at), size_bytes
