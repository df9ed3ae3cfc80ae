"""Launches of the CUDA kernels by hand, and checks of all memory and of the sums against the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.checksum import kvsum64
from kernels.copies import ChunkCopy, GroupBlocks
from kernels.cuda.kernel import KernelParams, access_bytes, are_summed, block_places, kernel_params
from kernels.plan import GroupPlan, chunk_bytes, plan_groups
from tests.kernels.cuda.machines import Kind, Machine
from tests.kernels.reference import Bytes, Engine, address, without_first

Sums = NDArray[np.uint64]

CHUNK_SIZE = 12


def noise(size_bytes: int, misaligned_by: int = 0) -> Bytes:
    """Return random bytes at an address that is ``misaligned_by`` modulo 64."""
    buffer = np.random.default_rng(3).integers(0, 256, size_bytes + 128, dtype=np.uint8)
    start = (misaligned_by - address(buffer)) % 64
    return buffer[start : start + size_bytes]


def random_copies(
    engine: Engine, num_chunks: int, *, gap: int, chunk_size: int = CHUNK_SIZE, skip_tokens: Sequence[int] = ()
) -> list[ChunkCopy]:
    """Return chunks ``gap`` bytes apart, of blocks in random order, none twice."""
    rng = np.random.default_rng(5)
    tables = []
    for group in engine.groups:
        blocks = chunk_size // group.block_size
        tables.append(rng.permutation(group.num_blocks)[: num_chunks * blocks].reshape(num_chunks, blocks))
    pitch = chunk_bytes(engine.groups, chunk_size) + gap
    return [
        ChunkCopy(
            l1_offset_bytes=gap + index * pitch,
            block_ids=without_first([table[index] for table in tables], engine.groups, skip_tokens),
        )
        for index in range(num_chunks)
    ]


def chunks_for(engine: Engine, copies: Sequence[ChunkCopy], chunk_size: int = CHUNK_SIZE) -> Bytes:
    return noise(copies[-1].l1_offset_bytes + chunk_bytes(engine.groups, chunk_size) + 99)


def launches_of(
    machine: Machine, engine: Engine, chunks: Bytes, copies: Sequence[ChunkCopy], chunk_size: int, sums: Sums | None
) -> list[KernelParams]:
    """Return the launches that carry out the copies: one for each group. All that can sum add to the same sums."""
    regions = np.array([machine.place(memory.bytes, Kind.ENGINE) for memory in engine._memory])
    chunks_base = machine.place(chunks, Kind.CHUNKS) + copies[0].l1_offset_bytes
    sums_address = machine.place(sums, Kind.SUMS) if sums is not None else 0
    pitch = copies[1].l1_offset_bytes - copies[0].l1_offset_bytes if len(copies) > 1 else 0
    launches = []
    for group, plan in enumerate(plan_groups(engine.groups, chunk_size)):
        by_copy = [copy.block_ids[group] for copy in copies]
        blocks = GroupBlocks(np.concatenate(by_copy), np.cumsum([0, *map(len, by_copy)]))
        planes = regions[plan.regions] + plan.engine_offsets
        launches.append(params_of(machine, plan, planes, chunks_base, pitch, blocks, sums_address))
    return launches


def params_of(
    machine: Machine,
    plan: GroupPlan,
    planes: NDArray[np.int64],
    chunks_base: int,
    chunk_pitch_bytes: int,
    blocks: GroupBlocks,
    sums: int = 0,
) -> KernelParams:
    """Return the parameters of a launch, with sums if it can sum."""
    plane_addresses = planes.ravel().astype(np.uint64)
    places = block_places(plan, blocks, np.arange(len(blocks.starts) - 1))
    width = access_bytes(plan, plane_addresses, chunks_base, chunk_pitch_bytes)
    return kernel_params(
        plan,
        num_planes=planes.size,
        plane_addresses=machine.place(plane_addresses, Kind.ARRAY),
        plane_chunk_offsets=machine.place(plan.chunk_offsets, Kind.ARRAY),
        num_blocks=blocks.ids.size,
        block_ids=machine.place(blocks.ids, Kind.ARRAY),
        block_places=machine.place(places, Kind.ARRAY),
        chunks_base=chunks_base,
        chunk_pitch_bytes=chunk_pitch_bytes,
        access_bytes=width,
        sums=sums if are_summed(width) else 0,
    )


def summed(engine: Engine, chunk: bytes, copy: ChunkCopy, widths: Sequence[int]) -> int:
    """Return what the copied blocks add to the checksum of a chunk, of groups in accesses of at least 8 bytes."""
    num_planes = [len(planes) for planes in engine.planes]
    total = 0
    for width, (plane, ids, at) in zip(
        np.repeat(widths, num_planes), engine._last_blocks(len(chunk), copy.block_ids), strict=True
    ):
        if width >= 8:
            total += kvsum64(np.frombuffer(chunk, np.uint8, plane[ids].nbytes, at), at)
    return total % 2**64


def check_gather(
    machine: Machine,
    engine: Engine,
    chunks: Bytes,
    copies: Sequence[ChunkCopy],
    chunk_size: int = CHUNK_SIZE,
    *,
    has_sums: bool = True,
) -> list[int]:
    """Gather, and compare all memory and the sums with the reference; return the widths of the accesses."""
    memory, expected = engine.contents(), chunks.copy()
    for copy in copies:
        chunk = expected[copy.l1_offset_bytes :][: chunk_bytes(engine.groups, chunk_size)]
        chunk[:] = np.frombuffer(engine.read_chunk(copy.block_ids, chunk.tobytes()), dtype=np.uint8)
    widths = check_launches(machine, "gather", engine, chunks, copies, chunk_size, expected, has_sums)
    np.testing.assert_array_equal(chunks, expected)
    assert engine.contents() == memory
    return widths


def check_scatter(
    machine: Machine,
    engine: Engine,
    chunks: Bytes,
    copies: Sequence[ChunkCopy],
    chunk_size: int = CHUNK_SIZE,
    *,
    has_sums: bool = True,
) -> list[int]:
    """Scatter, and compare all memory and the sums with the reference; return the widths of the accesses."""
    before, unchanged = engine.contents(), chunks.copy()
    widths = check_launches(machine, "scatter", engine, chunks, copies, chunk_size, unchanged, has_sums)
    moved = engine.contents()
    for memory, contents in zip(engine._memory, before, strict=True):
        memory.bytes[:] = np.frombuffer(contents, dtype=np.uint8)
    for copy in copies:
        chunk = chunks[copy.l1_offset_bytes :][: chunk_bytes(engine.groups, chunk_size)]
        engine.write_chunk(chunk.tobytes(), copy.block_ids)
    assert moved == engine.contents()
    np.testing.assert_array_equal(chunks, unchanged)
    return widths


def check_launches(
    machine: Machine,
    kernel: str,
    engine: Engine,
    chunks: Bytes,
    copies: Sequence[ChunkCopy],
    chunk_size: int,
    expected: Bytes,
    has_sums: bool,
) -> list[int]:
    """Launch, and compare the sums with those of the expected chunks; return the widths of the accesses."""
    started_with = noise(8 * len(copies)).view(np.uint64)  # launches add: what was there before stays
    sums = started_with.copy() if has_sums else None
    launches = launches_of(machine, engine, chunks, copies, chunk_size, sums)
    for launch in launches:
        machine.launch(kernel, launch, 16)
    machine.finish()
    widths = [int(launch["access_bytes"][0]) for launch in launches]
    if sums is not None:
        size_bytes = chunk_bytes(engine.groups, chunk_size)
        parts = [
            summed(engine, expected[copy.l1_offset_bytes :][:size_bytes].tobytes(), copy, widths) for copy in copies
        ]
        np.testing.assert_array_equal(sums - started_with, np.array(parts, np.uint64))
    return widths


CHECKS = {"gather": check_gather, "scatter": check_scatter}
