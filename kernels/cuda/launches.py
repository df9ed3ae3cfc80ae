"""Launches of the kernels: one for each group that a step touches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.copies import Copies
from kernels.cuda.kernel import KernelParams, access_bytes, kernel_params
from kernels.cuda.runtime import CudaDevice, Stream
from kernels.cuda.steps import Step
from kernels.cuda.uploads import WORD_BYTES, BlockArrays, PlaneArrays, UploadBuffer, UploadedCopies, block_offsets
from kernels.transfer import Direction, Phase


class BlockLaunches:
    """The launches of one direction. `phase` is their phase of a transfer."""

    def __init__(self, device: CudaDevice, direction: Direction, planes: Sequence[PlaneArrays], max_ctas: int) -> None:
        self.phase = Phase.GATHER if direction is Direction.STORE else Phase.SCATTER
        self._device = device
        self._direction = direction
        self._planes = planes
        self._max_ctas = max_ctas

    def upload(
        self, copies: Copies, chunk_starts: NDArray[np.int64], buffer: UploadBuffer, stream: Stream
    ) -> UploadedCopies:
        """Start to upload the blocks of copies. `chunk_starts[copy]` counts from the `chunks_base` of `issue`.

        That base never narrows an access: device memory is aligned to the widest one, and a part of a chunk begins
        where a plane does.
        """
        buffer.clear()
        arrays = []
        for planes, blocks in zip(self._planes, copies.blocks, strict=True):
            offsets = block_offsets(planes.plan, blocks, chunk_starts)
            width = access_bytes(planes.plan, planes.addresses, 0, offsets)
            arrays.append(BlockArrays(blocks.starts, buffer.append(blocks.ids), buffer.append(offsets), width))
        buffer.upload(stream)
        return UploadedCopies(copies.l1_offsets, arrays)

    def issue(self, step: Step, copies: UploadedCopies, chunks_base: int, stream: Stream) -> None:
        """Start to copy between the blocks of a step and its chunks."""
        for group, plane_range in step.part.planes:
            blocks = copies.blocks[group]
            first, end = int(blocks.starts[step.copies.start]), int(blocks.starts[step.copies.stop])
            if first < end:
                params = _params(self._planes[group], plane_range, blocks, range(first, end), chunks_base)
                self._device.launch(self._direction, params, self._max_ctas, stream)


def _params(
    planes: PlaneArrays, plane_range: range, blocks: BlockArrays, block_range: range, chunks_base: int
) -> KernelParams:
    """Return the parameters of a launch that copies some planes of some blocks."""
    return kernel_params(
        planes.plan,
        num_planes=len(plane_range),
        plane_addresses=planes.device_addresses + plane_range.start * WORD_BYTES,
        plane_chunk_offsets=planes.device_offsets + plane_range.start * WORD_BYTES,
        num_blocks=len(block_range),
        block_ids=blocks.device_ids + block_range.start * WORD_BYTES,
        chunk_block_offsets=blocks.device_offsets + block_range.start * WORD_BYTES,
        chunks_base=chunks_base % 2**64,
        access_bytes=blocks.access_bytes,
    )
