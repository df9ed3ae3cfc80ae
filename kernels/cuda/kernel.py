"""The CUDA kernels that copy blocks: their source, and the parameters of a launch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernels.checksum import WORD_BYTES
from kernels.copies import GroupBlocks
from kernels.plan import GroupPlan, Loop

THREADS_PER_CTA = 512
"""Threads of a CTA, as in the kernels' launch bounds: whole warps."""

MAX_CTAS = 1 << 20
"""Most CTAs of a launch: the kernels count their threads in 32 bits."""

COMPILE_OPTIONS = ("--std=c++17", "--generate-line-info")
"""Options for NVRTC; CuPy adds the architecture."""

_SOURCES = ("prelude.cuh", "checksum.cuh", "block_transfer.cu")
_COUNT_LIMIT = 2**31
_LOOP = np.dtype([("count", np.int64), ("engine_stride_bytes", np.int64), ("chunk_stride_bytes", np.int64)])

KERNEL_PARAMS = np.dtype(
    [
        ("plane_addresses", np.uint64),
        ("plane_chunk_offsets", np.uint64),
        ("block_ids", np.uint64),
        ("block_places", np.uint64),
        ("chunks_base", np.uint64),
        ("chunk_pitch_bytes", np.int64),
        ("sums", np.uint64),
        ("num_planes", np.int64),
        ("num_blocks", np.int64),
        ("block_stride_bytes", np.int64),
        ("block_bytes", np.int64),
        ("run_bytes", np.int64),
        ("outer", _LOOP),
        ("inner", _LOOP),
        ("access_bytes", np.int64),
    ]
)
"""`struct KernelParams` of block_transfer.cu, which is passed by value. The first four are addresses of arrays."""

KernelParams = NDArray[np.void]
"""An array of one KERNEL_PARAMS."""


def source() -> str:
    """Return the prelude and the kernels as one text, in which the compiler's messages name files and lines."""
    texts = [(name, Path(__file__).with_name(name).read_text("ascii")) for name in _SOURCES]
    return "".join(f'#line 1 "{name}"\n{text}' for name, text in texts)


def access_bytes(plan: GroupPlan, plane_addresses: NDArray[np.uint64], chunks_base: int, chunk_pitch_bytes: int) -> int:
    """Return the width of a launch's accesses in bytes: the widest one, 16 at most, that fits all its alignments.

    `plane_addresses` is the content of the launch's array.
    """
    bits = 16 | chunks_base | chunk_pitch_bytes | plan.block_stride_bytes | plan.block_bytes | plan.run_bytes
    for loop in plan.loops:
        bits |= loop.engine_stride_bytes | loop.chunk_stride_bytes
    for values in (plane_addresses, plan.chunk_offsets):
        bits |= int(np.bitwise_or.reduce(values, axis=None))
    return bits & -bits


def are_summed(access_bytes: int) -> bool:
    """Return whether accesses of this width can sum what they copy: each has whole words of the checksum."""
    return access_bytes >= WORD_BYTES


def block_places(plan: GroupPlan, blocks: GroupBlocks, chunks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each block goes: the number of its chunk in a launch, which is `chunks[copy]`, and its own in there.

    The chunk's number is in the lower half of a word, the block's number in the upper half.
    """
    num_blocks = np.diff(blocks.starts)
    from_end = np.repeat(blocks.starts[1:], num_blocks) - np.arange(blocks.ids.size)
    return np.repeat(chunks, num_blocks) | (plan.blocks_per_chunk - from_end) << 32


def kernel_params(
    plan: GroupPlan,
    *,
    num_planes: int,
    plane_addresses: int,
    plane_chunk_offsets: int,
    num_blocks: int,
    block_ids: int,
    block_places: int,
    chunks_base: int,
    chunk_pitch_bytes: int,
    access_bytes: int,
    sums: int = 0,
) -> KernelParams:
    """Return the parameters of a launch that copies each block of each plane.

    All addresses are the device's. The arrays must not change until the launch is done:

    - `plane_addresses`, uint64 `[num_planes]`: where block 0, token 0, head 0 of each plane is,
    - `plane_chunk_offsets`, int64 `[num_planes]`: where each plane begins in a chunk,
    - `block_ids`, int64 `[num_blocks]`,
    - `block_places`, int64 `[num_blocks]`: what the function of that name returns,
    - `sums`, uint64 `[chunks]`: to these, the launch adds the kvsum64 of what it copies. It does not if this is 0.

    Chunk `i` of the launch begins at `chunks_base + i * chunk_pitch_bytes`.

    The function `access_bytes` computes the argument of that name. With `sums` it satisfies `are_summed`.

    There must be something to copy, and no more than the kernels can count.

    Raises: ValueError.
    """
    outer, inner = _loops(plan)
    for count in (num_planes, num_blocks, outer.count, inner.count, plan.run_bytes // access_bytes):
        if not 1 <= count < _COUNT_LIMIT:
            raise ValueError(f"a launch copies 1 to 2**31 - 1 of everything, not {count}")
    if sums and not are_summed(access_bytes):
        raise ValueError(f"accesses of {access_bytes} bytes have no whole words to sum")
    fields = (
        plane_addresses,
        plane_chunk_offsets,
        block_ids,
        block_places,
        chunks_base,
        chunk_pitch_bytes,
        sums,
        num_planes,
        num_blocks,
        plan.block_stride_bytes,
        plan.block_bytes,
        plan.run_bytes,
        (outer.count, outer.engine_stride_bytes, outer.chunk_stride_bytes),
        (inner.count, inner.engine_stride_bytes, inner.chunk_stride_bytes),
        access_bytes,
    )
    return np.array([fields], dtype=KERNEL_PARAMS)


def _loops(plan: GroupPlan) -> Sequence[Loop]:
    """Return the outer loop and the inner one; a loop that the plan lacks has a count of 1."""
    return (*(Loop(1, 0, 0) for _ in range(2 - len(plan.loops))), *plan.loops)


def num_ctas(params: KernelParams, max_ctas: int) -> int:
    """Return the CTAs of a launch: enough for one vector per thread, `max_ctas` at most."""
    return min(max_ctas, MAX_CTAS, -(-num_vectors(params) // THREADS_PER_CTA))


def num_vectors(params: KernelParams) -> int:
    """Return the number of accesses of each side, which may have more than 64 bits."""
    at = params[0]
    per_run = int(at["run_bytes"]) // int(at["access_bytes"])
    per_block = per_run * int(at["outer"]["count"]) * int(at["inner"]["count"])
    return per_block * int(at["num_blocks"]) * int(at["num_planes"])
