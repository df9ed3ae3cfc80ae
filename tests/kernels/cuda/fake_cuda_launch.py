"""The kernels of the fake CUDA: which bytes a launch copies, and what it adds to the sums of its chunks."""

from __future__ import annotations

import numpy as np

from kernels.checksum import WORD_BYTES, kvsum64
from kernels.cuda.kernel import KernelParams
from kernels.transfer import Direction
from tests.kernels.cuda.fake_cuda_memory import Addresses, Bytes, Touch, TouchableMemory


class Launch:
    """A launch that runs. The arrays are ``[planes, blocks, outer, inner]``: where each run is, and in which chunk."""

    def __init__(self, memory: TouchableMemory, touch: Touch, params: KernelParams) -> None:
        self._memory = memory
        self._touch = touch
        self._fields = fields = params[0]
        planes, blocks = (int(fields["num_planes"]), -1, 1), (int(fields["num_blocks"]), 1, -1)
        engine = self._array("plane_addresses", *planes)
        engine = engine + self._array("block_ids", *blocks) * fields["block_stride_bytes"]
        places = self._array("block_places", *blocks)
        offsets = self._array("plane_chunk_offsets", *planes) + (places >> 32) * fields["block_bytes"]
        for name, shape in (("outer", (-1, 1)), ("inner", (-1,))):
            indices = np.arange(fields[name]["count"]).reshape(shape)
            engine = engine + indices * fields[name]["engine_stride_bytes"]
            offsets = offsets + indices * fields[name]["chunk_stride_bytes"]
        self._chunks = np.broadcast_to(places & 0xFFFFFFFF, offsets.shape)
        self._chunk_offsets = offsets
        self._in_engine = engine
        self._in_chunks = (
            fields["chunks_base"].astype(np.int64) + self._chunks * fields["chunk_pitch_bytes"] + self._chunk_offsets
        )

    @property
    def is_aligned(self) -> bool:
        """Whether all accesses are."""
        width = self._fields["access_bytes"]
        return not (self._fields["run_bytes"] % width or np.any((self._in_engine | self._in_chunks) % width))

    def run(self, direction: Direction) -> None:
        """Copy, and add to the sums if there are any."""
        source, target = self._bytes_of(self._in_engine), self._bytes_of(self._in_chunks)
        if direction is Direction.RETRIEVE:
            source, target = target, source
        values = self._memory.read(self._touch, source)
        self._memory.write(self._touch, target, values)
        if self._fields["sums"]:
            self._add_to_sums(values.reshape(-1, int(self._fields["run_bytes"])))

    def _add_to_sums(self, runs: Bytes) -> None:
        chunks, offsets = self._chunks.ravel(), self._chunk_offsets.ravel()
        for chunk in np.unique(chunks).tolist():
            part = sum(kvsum64(runs[i], int(offsets[i])) for i in np.flatnonzero(chunks == chunk))
            at = int(self._fields["sums"]) + (chunk * WORD_BYTES + np.arange(WORD_BYTES))
            before = int(self._memory.read(self._touch, at).view(np.uint64)[0])
            self._memory.write(self._touch, at, np.array([(before + part) % 2**64], np.uint64).view(np.uint8))

    def _array(self, name: str, num_words: int, *shape: int) -> Addresses:
        words = self._memory.read(self._touch, int(self._fields[name]) + np.arange(WORD_BYTES * num_words))
        return words.view(np.int64).reshape(*shape, 1, 1)

    def _bytes_of(self, runs: Addresses) -> Addresses:
        return (runs[..., np.newaxis] + np.arange(self._fields["run_bytes"])).ravel()
