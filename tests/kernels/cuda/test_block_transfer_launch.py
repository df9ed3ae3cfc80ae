"""Launches of the CUDA kernels: widths, grids, parameters, and the order of their work."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.copies import GroupBlocks
from kernels.cuda import driver
from kernels.cuda import kernel as cuda_kernel
from kernels.cuda.block_kernels import BlockKernels
from kernels.cuda.kernel import (
    KERNEL_PARAMS,
    KernelParams,
    access_bytes,
    are_summed,
    block_places,
    kernel_params,
    num_ctas,
    num_vectors,
)
from kernels.cuda.runtime import Stream
from kernels.errors import BackendError
from kernels.plan import GroupPlan, Loop
from kernels.transfer import Direction
from tests.kernels.cuda.machines import FIELDS, library

WIDE = {
    "block_stride_bytes": 4096,
    "run_bytes": 256,
    "outer_engine": 1024,
    "outer_chunk": 512,
    "inner_engine": 512,
    "inner_chunk": 256,
    "plane_chunk_offset": 1 << 40,
    "plane_address": 1 << 60,
    "chunks_base": 1 << 63,
    "chunk_pitch": 8192,
    "block_bytes": 2048,
}


def plan_of(values: dict[str, int]) -> GroupPlan:
    return GroupPlan(
        num_blocks=9,
        block_size=4,
        blocks_per_chunk=2,
        block_stride_bytes=values["block_stride_bytes"],
        block_bytes=values["block_bytes"],
        run_bytes=values["run_bytes"],
        loops=(
            Loop(2, values["outer_engine"], values["outer_chunk"]),
            Loop(4, values["inner_engine"], values["inner_chunk"]),
        ),
        regions=np.zeros((2, 1), dtype=np.int64),
        engine_offsets=np.zeros((2, 1), dtype=np.int64),
        chunk_offsets=np.array([[0], [values["plane_chunk_offset"]]]),
    )


def params_of(
    plan: GroupPlan, num_planes: int = 2, num_blocks: int = 3, access_bytes: int = 16, sums: int = 105
) -> KernelParams:
    return kernel_params(
        plan,
        num_planes=num_planes,
        plane_addresses=101,
        plane_chunk_offsets=102,
        num_blocks=num_blocks,
        block_ids=103,
        block_places=104,
        chunks_base=2**64 - 48,
        chunk_pitch_bytes=8192,
        access_bytes=access_bytes,
        sums=sums,
    )


@pytest.mark.parametrize("width", [16, 8, 4, 2, 1])
@pytest.mark.parametrize("name", WIDE)
def test_the_width_is_what_everything_is_a_multiple_of(name: str, width: int) -> None:
    values = WIDE | {name: WIDE[name] + 3 * width}
    chosen = access_bytes(
        plan_of(values),
        np.array([0, values["plane_address"]], dtype=np.uint64),
        values["chunks_base"],
        values["chunk_pitch"],
    )
    assert chosen == width


def test_accesses_are_never_wider_than_a_vector() -> None:
    assert access_bytes(plan_of(WIDE), np.array([1 << 60], dtype=np.uint64), 1 << 63, 8192) == 16


def test_a_launch_has_the_plan_and_the_arrays() -> None:
    (params,) = params_of(plan_of(WIDE)).tolist()
    outer, inner = (2, 1024, 512), (4, 512, 256)
    assert params == (101, 102, 103, 104, 2**64 - 48, 8192, 105, 2, 3, 4096, 2048, 256, outer, inner, 16)


def test_loops_that_a_plan_lacks_have_a_count_of_1() -> None:
    plan = plan_of(WIDE)
    for loops in ((), plan.loops[1:]):
        fields = {name: getattr(plan, name) for name in GroupPlan.__slots__}
        params = params_of(GroupPlan(**fields | {"loops": loops}))[0]
        assert params["outer"].item() == (1, 0, 0)
        assert params["inner"].item() == ((4, 512, 256) if loops else (1, 0, 0))


@pytest.mark.parametrize("count", [-1, 0, 2**31])
@pytest.mark.parametrize("what", ["num_planes", "num_blocks"])
def test_what_the_kernels_cannot_count_is_refused(what: str, count: int) -> None:
    params_of(plan_of(WIDE), **{what: 2**31 - 1})
    with pytest.raises(ValueError, match="not"):
        params_of(plan_of(WIDE), **{what: count})


def test_a_run_of_too_many_vectors_is_refused() -> None:
    plan = plan_of(WIDE | {"run_bytes": 2**32})
    params_of(plan, access_bytes=4, sums=0)
    with pytest.raises(ValueError, match=str(2**31)):
        params_of(plan, access_bytes=2, sums=0)


@pytest.mark.parametrize("width", [16, 8, 4, 2, 1])
def test_accesses_without_whole_words_sum_nothing(width: int) -> None:
    assert are_summed(width) == (width >= 8)
    if not are_summed(width):
        with pytest.raises(ValueError, match="whole words"):
            params_of(plan_of(WIDE), access_bytes=width)
    assert params_of(plan_of(WIDE), access_bytes=width, sums=0)["sums"] == 0


def test_blocks_go_to_the_end_of_their_chunk() -> None:
    blocks = GroupBlocks(np.array([5, 6, 7, 8, 4]), np.array([0, 2, 3, 3, 5]))
    places = block_places(plan_of(WIDE), blocks, np.array([0, 1, 2, 2**31 - 1]))
    chunks_and_blocks = places.view("<u4").reshape(-1, 2).tolist()
    assert chunks_and_blocks == [[0, 0], [0, 1], [1, 1], [2**31 - 1, 0], [2**31 - 1, 1]]


@pytest.mark.parametrize(
    ("num_blocks", "max_ctas", "expected"),
    [(1, 16, 1), (2, 16, 1), (3, 16, 2), (2**20, 16, 16), (2**20, 1, 1), (2**31 - 1, 2**31, 2**20)],
)
def test_a_grid_has_a_thread_for_each_vector_or_is_capped(num_blocks: int, max_ctas: int, expected: int) -> None:
    params = params_of(plan_of(WIDE), num_blocks=num_blocks)
    assert num_vectors(params) == num_blocks * 2 * 2 * 4 * 16
    assert num_ctas(params, max_ctas) == expected


def test_the_arguments_are_laid_out_as_the_kernels_have_them() -> None:
    def offset_of(field: str, dtype: np.dtype[Any] = KERNEL_PARAMS) -> int:
        name, _, inner = field.partition(".")
        assert dtype.fields is not None
        of_name, offset = dtype.fields[name][:2]
        return offset + (offset_of(inner, of_name) if inner else 0)

    offsets = (ctypes.c_int64 * len(FIELDS)).in_dll(library(), "field_offsets")
    assert list(offsets) == [offset_of(field) for field in FIELDS]
    assert KERNEL_PARAMS.itemsize == 152 == 8 * len(FIELDS)


def test_no_cta_has_more_threads_than_the_kernels_are_compiled_for() -> None:
    assert ctypes.c_int64.in_dll(library(), "max_threads").value == cuda_kernel.THREADS_PER_CTA


def test_a_cta_has_whole_warps() -> None:
    assert cuda_kernel.THREADS_PER_CTA % ctypes.c_int64.in_dll(library(), "warp_threads").value == 0


radixes = st.tuples(*[st.one_of(st.integers(1, 5), st.integers(1, 2**31 - 1))] * 4)


@given(radixes, st.integers(0, 2**29), st.integers(1, 2**29), st.integers(0, 20))
def test_a_thread_counts_through_its_work_in_strides(
    radix: tuple[int, ...], first: int, stride: int, num_strides: int
) -> None:
    Position = ctypes.c_uint32 * 5  # noqa: N806 - a type - struct Position of block_transfer.cu
    radix_of, at, step = Position(*radix, 1024), Position(), Position()
    library().first_position(first, radix_of, at)
    library().first_position(stride, radix_of, step)
    for _ in range(num_strides):
        library().next_position(at, step, radix_of)
    number, digits = first + num_strides * stride, []
    for base in radix:
        number, digit = divmod(number, base)
        digits.append(digit)
    # Far behind the last plane the number of the plane may wrap; no thread goes there.
    assert list(at) == [*digits, number % 2**32]


@given(st.lists(st.integers(2, 2**31 - 1), min_size=4, max_size=4), st.data())
def test_digits_as_large_as_they_get_do_not_overflow(radix: list[int], data: st.DataObject) -> None:
    Position = ctypes.c_uint32 * 5  # noqa: N806 - a type
    near_the_end = [st.integers(max(0, base - 3), base - 1) for base in radix]
    at, step = (Position(*data.draw(st.tuples(*near_the_end)), 7) for _ in range(2))
    expected, carry = [], 0
    for digit, addend, base in zip(at, step, radix, strict=False):
        carry, digit = divmod(digit + addend + carry, base)
        expected.append(digit)
    library().next_position(at, step, Position(*radix, 1024))
    assert list(at) == [*expected, 14 + carry]


def test_the_source_has_one_text_and_says_which_file_a_line_is_of() -> None:
    source = cuda_kernel.source()
    files = [source.index(f'#line 1 "{name}"') for name in ("prelude.cuh", "checksum.cuh", "block_transfer.cu")]
    assert files == sorted(files)
    assert "#include" not in source


class FakeCuPy:
    """Stands in for CuPy: it compiles nothing, and a kernel's address is its index in ``NAMES``."""

    NAMES = ("", "gather_blocks", "scatter_blocks")

    def __init__(self) -> None:
        self.code = ""
        self.cuda = SimpleNamespace(compiler=SimpleNamespace(CompileException=KeyError))

    def RawModule(self, *, code: str, options: tuple[str, ...]) -> Any:
        self.code = code
        return SimpleNamespace(
            get_function=lambda name: SimpleNamespace(kernel=SimpleNamespace(ptr=self.NAMES.index(name)))
        )


def test_a_launch_goes_to_its_stream_with_a_capped_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy, launched = FakeCuPy(), []
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(driver, "launch", lambda function, *others: launched.append((cupy.NAMES[function], *others)))
    kernels = BlockKernels()
    params, stream = params_of(plan_of(WIDE), num_blocks=2**20), Stream(77)
    kernels.launch(Direction.STORE, params, 12, stream)
    kernels.launch(Direction.RETRIEVE, params, 16, stream)
    assert cupy.code == cuda_kernel.source()
    assert launched == [("gather_blocks", 12, 512, params, stream), ("scatter_blocks", 16, 512, params, stream)]


def test_without_cupy_the_kernels_are_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match="CuPy"):
        BlockKernels()


def test_without_a_device_the_kernels_are_unavailable() -> None:
    cupy = pytest.importorskip("cupy")
    if cupy.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(BackendError, match="cuda"):
        BlockKernels()
