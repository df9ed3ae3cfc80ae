"""Launches of the kernels: one for each group that a step touches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.checksum import WORD_BYTES
from kernels.copies import Copies
from kernels.cuda.kernel import access_bytes, are_summed, block_places, kernel_params
from kernels.cuda.runtime import CudaDevice, Stream
from kernels.cuda.steps import Step
from kernels.cuda.uploads import BlockArrays, PlaneArrays, UploadBuffer, UploadedCopies
from kernels.transfer import Direction, Phase


class BlockLaunches:
    """The launches of one direction. `phase` is their phase of a transfer.

    Chunks of a step follow each other at a distance of `chunk_pitch_bytes`. `are_summed[group]` says whether the
    launches of a group can sum what they copy.
    """

    def __init__(
        self,
        device: CudaDevice,
        direction: Direction,
        planes: Sequence[PlaneArrays],
        max_ctas: int,
        chunk_pitch_bytes: int,
    ) -> None:
        self.phase = Phase.GATHER if direction is Direction.STORE else Phase.SCATTER
        self._device = device
        self._direction = direction
        self._planes = planes
        self._max_ctas = max_ctas
        self._chunk_pitch_bytes = chunk_pitch_bytes
        # The base of a step's chunks never narrows an access: device memory is aligned to the widest one, and a part of
        # a chunk begins where a plane does.
        self._widths = [access_bytes(each.plan, each.addresses, 0, chunk_pitch_bytes) for each in planes]
        self.are_summed = [are_summed(width) for width in self._widths]

    def upload(self, copies: Copies, chunks: NDArray[np.int64], buffer: UploadBuffer, stream: Stream) -> UploadedCopies:
        """Start to upload the blocks of copies. `chunks[copy]` is the number of the copy's chunk in its step."""
        buffer.clear()
        arrays = []
        for planes, blocks in zip(self._planes, copies.blocks, strict=True):
            places = block_places(planes.plan, blocks, chunks)
            arrays.append(BlockArrays(blocks.starts, buffer.append(blocks.ids), buffer.append(places)))
        wants_sums = any(self.are_summed) and bool(copies.with_checksum.any())
        sums = buffer.append_sums(len(copies)) if wants_sums else None
        buffer.upload(stream)
        return UploadedCopies(copies.l1_offsets, arrays, sums)

    def issue(self, step: Step, copies: UploadedCopies, chunks_base: int, stream: Stream) -> None:
        """Start to copy between the blocks of a step and its chunks, and to add to the checksums of these."""
        for group, plane_range in step.part.planes:
            planes, blocks = self._planes[group], copies.blocks[group]
            first, end = int(blocks.starts[step.copies.start]), int(blocks.starts[step.copies.stop])
            if first == end:
                continue
            sums = 0
            if copies.sums is not None and self.are_summed[group]:
                sums = copies.sums.device_address + step.copies.start * WORD_BYTES
            params = kernel_params(
                planes.plan,
                num_planes=len(plane_range),
                plane_addresses=planes.device_addresses + plane_range.start * WORD_BYTES,
                plane_chunk_offsets=planes.device_offsets + plane_range.start * WORD_BYTES,
                num_blocks=end - first,
                block_ids=blocks.device_ids + first * WORD_BYTES,
                block_places=blocks.device_places + first * WORD_BYTES,
                chunks_base=chunks_base % 2**64,
                chunk_pitch_bytes=self._chunk_pitch_bytes,
                access_bytes=self._widths[group],
                sums=sums,
            )
            self._device.launch(self._direction, params, self._max_ctas, stream)
