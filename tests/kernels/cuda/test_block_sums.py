"""The sums of the CUDA kernels: the results of the table, damage that they find, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.checksum import kvsum64
from kernels.copies import GroupBlocks
from kernels.cuda.kernel import KernelParams, num_ctas
from kernels.plan import GroupPlan
from tests.kernels.checksum_vectors import VECTORS, Vector
from tests.kernels.cuda.launches import CHECKS, chunks_for, noise, params_of, random_copies
from tests.kernels.cuda.machines import MACHINES, Kind, Machine, OnCpu
from tests.kernels.reference import AlignedEngine, Bytes, Shape

WARP_THREADS = 32
WHOLE_WORDS = [vector for vector in VECTORS if vector.size_bytes and vector.size_bytes % 8 == 0]

both_kernels = pytest.mark.parametrize("kernel", CHECKS)


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    machine: Machine = request.param()
    return machine


def one_run(run_bytes: int, chunk_offset: int = 0) -> GroupPlan:
    """Return a plan of one plane, at an offset in the chunk, with one block in one run."""
    return GroupPlan(
        num_blocks=1,
        block_size=1,
        blocks_per_chunk=1,
        block_stride_bytes=0,
        block_bytes=run_bytes,
        run_bytes=run_bytes,
        loops=(),
        regions=np.zeros((1, 1), np.int64),
        engine_offsets=np.zeros((1, 1), np.int64),
        chunk_offsets=np.array([[chunk_offset]]),
    )


def launch_of(
    machine: Machine, plan: GroupPlan, engine: Bytes, chunks: Bytes, sums: NDArray[np.uint64], first: int = 0
) -> KernelParams:
    """Return a launch between block 0 and every chunk; ``first`` is the offset of `chunks` in the first chunk."""
    planes = np.array([[machine.place(engine, Kind.ENGINE)]])
    chunks_base = (machine.place(chunks, Kind.CHUNKS) - first) % 2**64
    blocks = GroupBlocks(np.zeros(len(sums), np.int64), np.arange(len(sums) + 1))
    return params_of(machine, plan, planes, chunks_base, plan.run_bytes, blocks, machine.place(sums, Kind.SUMS))


@both_kernels
@pytest.mark.parametrize("vector", WHOLE_WORDS, ids=str)
def test_the_kernels_compute_the_results_of_the_table(machine: Machine, vector: Vector, kernel: str) -> None:
    data, engine, sums = vector.data(), noise(vector.size_bytes), np.zeros(1, np.uint64)
    chunk = noise(vector.size_bytes)
    (engine if kernel == "gather" else chunk)[:] = data
    plan = one_run(vector.size_bytes, vector.offset_bytes)
    machine.launch(kernel, launch_of(machine, plan, engine, chunk, sums, vector.offset_bytes), 16)
    machine.finish()
    assert sums[0] == vector.checksum
    assert (engine == data).all() and (chunk == data).all()


def damage(chunk: Bytes, rng: np.random.Generator) -> None:
    """Change a chunk as accidents do: bits, bytes, lost or swapped pieces, pieces of another chunk."""
    words, before = chunk.view(np.uint64), chunk.copy()
    while (chunk == before).all():
        at, other = rng.choice(words.size, 2, replace=False)
        some = slice(at, at + rng.integers(1, 9))
        match rng.integers(6):
            case 0:
                chunk[rng.integers(chunk.size)] ^= 1 << rng.integers(8)
            case 1:
                chunk[rng.integers(chunk.size)] = rng.integers(256)
            case 2:
                words[some] = 0
            case 3:
                words[[at, other]] = words[[other, at]]
            case 4:
                words[at] = words[at] >> 32 | words[at] << 32
            case _:
                chunk[8 * at : 8 * at + 64] = rng.integers(0, 256, chunk[8 * at : 8 * at + 64].size)


def test_every_one_of_10_000_random_damages_in_l1_changes_the_sum_of_a_scatter() -> None:
    machine, rng, num_chunks, size_bytes = OnCpu(), np.random.default_rng(17), 10_000, 384
    right = noise(size_bytes)
    right[: size_bytes // 2] = 0
    chunks = noise(num_chunks * size_bytes).reshape(num_chunks, size_bytes)
    chunks[:] = right
    for chunk in chunks:
        damage(chunk, rng)
    sums = np.zeros(num_chunks, np.uint64)
    machine.launch("scatter", launch_of(machine, one_run(size_bytes), noise(size_bytes), chunks.ravel(), sums), 4)
    assert kvsum64(right) not in set(sums.tolist())
    some = slice(None, None, 100)
    assert sums[some].tolist() == [kvsum64(chunk) for chunk in chunks[some]]


@both_kernels
@pytest.mark.parametrize("ctas", [1, 3])
def test_a_warp_adds_once_for_each_chunk_that_it_comes_to(kernel: str, ctas: int) -> None:
    machine, warps = OnCpu(), 512 // WARP_THREADS * ctas
    chunk, num_chunks = 5 * 16 * 512 * ctas, 3  # each thread has several vectors of each chunk
    sums = np.zeros(num_chunks, np.uint64)
    params = launch_of(machine, one_run(chunk), noise(chunk), noise(chunk * num_chunks), sums)
    assert num_ctas(params, ctas) == ctas
    machine.launch(kernel, params, ctas)
    assert machine.additions == warps * num_chunks


@both_kernels
def test_chunks_smaller_than_a_warps_accesses_have_sums_of_their_own(machine: Machine, kernel: str) -> None:
    engine = AlignedEngine(("LBNHC", Shape(num_layers=2, num_blocks=40, num_heads=1, block_size=1)), alignment=16)
    copies = random_copies(engine, 40, gap=16, chunk_size=1)
    CHECKS[kernel](machine, engine, chunks_for(engine, copies, 1), copies, 1)


@both_kernels
def test_without_sums_nothing_is_added(kernel: str) -> None:
    machine = OnCpu()
    engine = AlignedEngine(("LBHNC", Shape()), alignment=16)
    copies = random_copies(engine, 2, gap=16, chunk_size=4)
    CHECKS[kernel](machine, engine, chunks_for(engine, copies, 4), copies, 4, has_sums=False)
    assert machine.additions == 0


@both_kernels
@pytest.mark.parametrize("threads", [32, 64, 512])
@pytest.mark.parametrize("ctas", [1, 2, 7, 40])
def test_sums_do_not_depend_on_the_grid(ctas: int, threads: int, kernel: str) -> None:
    class OddGrid(OnCpu):
        def launch(self, kernel: str, params: KernelParams, max_ctas: int) -> None:
            self.launch_exactly(kernel, params, ctas, threads)

    engine = AlignedEngine(
        ("LBHNC", Shape(num_layers=2, num_blocks=9, block_size=4, num_heads=3)),
        ("NL_X_NB_BS_HS", Shape(num_layers=3, num_blocks=30, block_size=2, head_size=8)),
        alignment=16,
    )
    copies = random_copies(engine, 3, gap=16, skip_tokens=[4, 2])
    CHECKS[kernel](OddGrid(), engine, chunks_for(engine, copies), copies)
