"""The CUDA kernels: the right bytes at the right address, no other byte touched, and the right sums."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from kernels.checksum import kvsum64
from kernels.copies import GroupBlocks
from kernels.cuda.kernel import KernelParams
from kernels.plan import GroupPlan, Loop
from tests.kernels.cuda.launches import CHECKS, chunks_for, noise, params_of, random_copies
from tests.kernels.cuda.machines import MACHINES, Kind, Machine, OnCpu
from tests.kernels.reference import LAYOUTS, AlignedEngine, Bytes, Engine, Shape

WIDTHS = (16, 8, 4, 2, 1)
ALIGNED = Shape(num_heads=3, head_size=24)  # everything but addresses is a multiple of 16 bytes, and of no more


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    machine: Machine = request.param()
    return machine


both_kernels = pytest.mark.parametrize("kernel", CHECKS)
all_layouts = pytest.mark.parametrize("name", LAYOUTS)
one_region_or_more = pytest.mark.parametrize("one_region", [True, False], ids=["one-region", "region-per-tensor"])


@both_kernels
@pytest.mark.parametrize("width", WIDTHS)
@one_region_or_more
@all_layouts
def test_blocks_and_chunks_in_accesses_as_wide_as_the_planes_alignment(
    machine: Machine, name: str, one_region: bool, width: int, kernel: str
) -> None:
    engine = AlignedEngine((name, ALIGNED), alignment=width, one_region=one_region)
    copies = random_copies(engine, 2, gap=32)
    assert CHECKS[kernel](machine, engine, chunks_for(engine, copies), copies) == [width]


@both_kernels
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@one_region_or_more
@all_layouts
def test_nothing_need_be_aligned(machine: Machine, name: str, one_region: bool, dtype: str, kernel: str) -> None:
    engine = Engine((name, Shape(num_heads=3, head_size=5, dtype=dtype)), one_region=one_region)
    copies = random_copies(engine, 2, gap=3)
    assert CHECKS[kernel](machine, engine, chunks_for(engine, copies), copies) == [1]


@both_kernels
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("cause", ["chunks' base", "chunks' offsets", "heads' bytes"])
def test_what_is_aligned_worst_decides_the_width(machine: Machine, cause: str, width: int, kernel: str) -> None:
    shape = Shape(num_heads=3, head_size=3 * width, dtype="uint8") if cause == "heads' bytes" else ALIGNED
    engine = AlignedEngine(("LBHNC", shape), alignment=16)
    copies = random_copies(engine, 2, gap=width if cause == "chunks' offsets" else 32)
    chunks = chunks_for(engine, copies)
    if cause == "chunks' base":
        chunks = noise(chunks.size, misaligned_by=width)
    assert CHECKS[kernel](machine, engine, chunks, copies) == [width]


@both_kernels
@pytest.mark.parametrize("skip_tokens", [4, 8])
@all_layouts
def test_of_a_chunks_last_blocks_nothing_before_them_is_touched(
    machine: Machine, name: str, skip_tokens: int, kernel: str
) -> None:
    engine = AlignedEngine((name, ALIGNED), alignment=16)
    copies = random_copies(engine, 2, gap=16, skip_tokens=[skip_tokens])
    CHECKS[kernel](machine, engine, chunks_for(engine, copies), copies)


@both_kernels
def test_groups_with_blocks_of_different_sizes_share_a_chunk(machine: Machine, kernel: str) -> None:
    engine = AlignedEngine(
        ("LBHNC", Shape(num_layers=2, num_blocks=9, block_size=4, num_heads=3)),
        ("NL_X_NB_BS_HS", Shape(num_layers=5, num_blocks=30, block_size=2, head_size=14, dtype="uint8")),
        ("NL_X_TWO_NB_BS_NH_HS", Shape(num_layers=1, num_blocks=7, block_size=6, num_heads=1, dtype="uint32")),
        alignment=16,
    )
    copies = random_copies(engine, 3, gap=8)
    assert CHECKS[kernel](machine, engine, chunks_for(engine, copies), copies) == [8, 4, 8]


@both_kernels
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("NL_X_NB_BS_HS", Shape(num_layers=1, num_blocks=1, block_size=1, head_size=1, dtype="uint8")),
        ("LBHNC", Shape(num_layers=1, num_blocks=3, block_size=1, num_heads=1, head_size=64)),
        ("LBHNC", Shape(num_layers=2, num_blocks=3, block_size=16, num_heads=8, head_size=64)),
        ("LBNHC", Shape(num_layers=3, num_blocks=40, block_size=1, num_heads=1, head_size=64)),
        ("NL_X_NB_BS_HS", Shape(num_layers=2, num_blocks=3, block_size=64, head_size=576)),
        ("NL_X_TWO_NB_BS_NH_HS", Shape(num_layers=2, num_blocks=3, block_size=16, num_heads=9, head_size=128)),
    ],
    ids=["a byte", "a run", "runs of 128", "tokens of 128", "latents of 1152", "runs of 36864"],
)
def test_short_runs_and_long(machine: Machine, name: str, shape: Shape, kernel: str) -> None:
    engine = AlignedEngine((name, shape), alignment=16)
    copies = random_copies(engine, shape.num_blocks, gap=16, chunk_size=shape.block_size)
    CHECKS[kernel](machine, engine, chunks_for(engine, copies, shape.block_size), copies, shape.block_size)


@both_kernels
@pytest.mark.parametrize(("ctas", "threads"), [(1, 32), (1, 512), (2, 512), (5, 64), (3, 96), (999, 512)])
@pytest.mark.parametrize("name", ["BLHNC", "LBNHC", "TWO_X_NL_X_NBBS_NH_HS", "NL_X_NB_BS_HS"])
def test_any_grid_moves_all(name: str, ctas: int, threads: int, kernel: str) -> None:
    class OddGrid(OnCpu):
        def launch(self, kernel: str, params: KernelParams, max_ctas: int) -> None:
            self.launch_exactly(kernel, params, ctas, threads)

    engine = AlignedEngine((name, ALIGNED), alignment=16)
    copies = random_copies(engine, 2, gap=16)
    CHECKS[kernel](OddGrid(), engine, chunks_for(engine, copies), copies)


def sparse(size_bytes: int) -> Bytes:
    """Return memory that takes no more than its touched pages."""
    fd = os.memfd_create("kvdepot-test")
    os.ftruncate(fd, size_bytes)
    try:
        return np.frombuffer(mmap.mmap(fd, size_bytes), dtype=np.uint8)
    finally:
        os.close(fd)


@both_kernels
def test_offsets_may_need_more_than_32_bits(kernel: str) -> None:
    machine, gib = OnCpu(), 1 << 30
    engine_strides = (5 * gib + 512, 6 * gib + 256, 7 * gib + 128, 9 * gib + 64)  # nothing meets
    chunk_strides = engine_strides[::-1]
    shape = (2, 2, 2, 2, 32)  # planes, blocks, iterations of the outer loop, of the inner loop, bytes
    engine, chunks = sparse(28 * gib), sparse(28 * gib)
    engine_view = np.ndarray(shape, np.uint8, engine, strides=(*engine_strides, 1))
    chunk_view = np.ndarray(shape, np.uint8, chunks, strides=(*chunk_strides, 1))
    source, target = (engine_view, chunk_view) if kernel == "gather" else (chunk_view, engine_view)
    expected = np.random.default_rng(1).integers(1, 256, shape, dtype=np.uint8)
    source[...] = expected
    sums = np.zeros(1, np.uint64)
    plan = GroupPlan(
        num_blocks=2,
        block_size=4,
        blocks_per_chunk=2,
        block_stride_bytes=engine_strides[1],
        block_bytes=chunk_strides[1],
        run_bytes=32,
        loops=(Loop(2, engine_strides[2], chunk_strides[2]), Loop(2, engine_strides[3], chunk_strides[3])),
        regions=np.zeros((1, 2), dtype=np.int64),
        engine_offsets=np.array([[0, engine_strides[0]]]),
        chunk_offsets=np.array([[0, chunk_strides[0]]]),
    )
    planes = machine.place(engine, Kind.ENGINE) + plan.engine_offsets
    chunks_base = machine.place(chunks, Kind.CHUNKS)
    blocks = GroupBlocks(np.arange(2), np.array([0, 2]))
    params = params_of(machine, plan, planes, chunks_base, 0, blocks, machine.place(sums, Kind.SUMS))
    machine.launch(kernel, params, 16)
    np.testing.assert_array_equal(target, expected)
    offsets = [np.dot(index, chunk_strides) for index in np.ndindex(shape[:-1])]
    parts = [kvsum64(run, int(at)) for run, at in zip(expected.reshape(-1, shape[-1]), offsets, strict=True)]
    assert sums[0] == sum(parts) % 2**64
