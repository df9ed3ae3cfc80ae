"""The benchmarks move the bytes that their figures name."""

from __future__ import annotations

import pytest

from benchmarks.gpu.rig import group_of
from benchmarks.gpu.sizes import CHUNK_SIZE, FULL, QUICK, Sizes
from benchmarks.gpu.unmapping import VICTIM_BYTES
from kernels.geometry import CudaIpc, Region
from kernels.plan import check_groups, plan_groups


@pytest.mark.parametrize("sizes", [FULL, QUICK], ids=["full", "quick"])
def test_runs_are_as_long_and_regions_as_large_as_is_said(sizes: Sizes) -> None:
    victim_tokens = VICTIM_BYTES // sizes.token_bytes
    for num_tokens in (sizes.tokens, sizes.long_tokens, victim_tokens):
        for run_kib in sizes.run_kib:
            region = Region(num_tokens * sizes.token_bytes, CudaIpc(bytes(64), 0, "a device"))
            group = group_of(region, run_kib, sizes)
            check_groups([group], [region.size_bytes])
            (plan,) = plan_groups([group], CHUNK_SIZE)
            assert plan.run_bytes == run_kib * 1024
            assert plan.num_blocks * plan.block_size == num_tokens


def test_the_full_sizes_are_those_of_the_figures() -> None:
    assert FULL.tokens * FULL.token_bytes == 1 << 30
    assert FULL.long_tokens * FULL.token_bytes == 16 << 30
    assert (FULL.run_kib, FULL.max_ctas) == ((4, 16, 32, 64), (4, 16, 32, 132))
