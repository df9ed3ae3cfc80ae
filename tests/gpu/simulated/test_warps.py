"""Warps of the simulated card: threads exchange values, and a warp that diverges where it has to meet is an error."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

USE_A_WARP = """
struct Target {{ unsigned long long address; }};
extern "C" __global__ void use_a_warp(const Target target) {{
    unsigned long long value = threadIdx.x;
    {call}
    __stcs(reinterpret_cast<unsigned long long*>(target.address) + threadIdx.x, value);
}}
"""


def test_the_threads_of_a_warp_exchange_values(cupy: Any) -> None:
    kernel = cupy.RawModule(code=USE_A_WARP.format(call="value = __shfl_down_sync(0xFFFFFFFF, value, 1);"))
    memory = cupy.cuda.Memory(8 * 64)
    kernel.get_function("use_a_warp")((1,), (64,), (np.array([memory.ptr], dtype=np.uint64),))
    values = list((ctypes.c_uint64 * 64).from_address(memory.ptr))
    assert values == [*range(1, 32), 31, *range(33, 64), 63]


DIVERGENT = {
    "a thread has ended": (64, "if (threadIdx.x == 40) return; value = __shfl_sync(0xFFFFFFFF, value, 0);"),
    "a thread is elsewhere": (
        64,
        "if (threadIdx.x == 40) value = __any_sync(0xFFFFFFFF, 1); else value = __all_sync(0xFFFFFFFF, 1);",
    ),
    "a mask of some threads": (64, "value = __shfl_sync(0xFFFF, value, 0);"),
    "a warp that is not whole": (40, "value = __shfl_sync(0xFFFFFFFF, value, 0);"),
}


@pytest.mark.parametrize("how", DIVERGENT)
def test_a_warp_that_diverges_where_it_has_to_meet_ends_the_context(cupy: Any, how: str) -> None:
    threads, call = DIVERGENT[how]
    kernel = cupy.RawModule(code=USE_A_WARP.format(call=call)).get_function("use_a_warp")
    memory = cupy.cuda.Memory(8 * 64)
    kernel((1,), (threads,), (np.array([memory.ptr], dtype=np.uint64),))
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError) as refused:
        cupy.cuda.runtime.deviceSynchronize()
    assert refused.value.status == 719
