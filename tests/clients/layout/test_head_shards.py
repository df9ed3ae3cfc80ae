"""A shard of heads is described as the slice of the tensors that has these heads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from kvdepot import InvalidArgument, KvShape, SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from kvdepot.layout.head_shards import head_shards
from kvdepot.v1.cache_pb2 import KvGroup

SIZES = {"L": 2, "B": 3, "H": 4, "N": 2, "C": 6}
OTHER = KvShape(num_layers=2, num_blocks=3, block_size=2, num_heads=4, head_size=3, dtype="float16")


def assert_slices(describe: Callable[[slice], KvGroup], num_shards: int) -> None:
    """Compare shards with what the layout says of slices of the tensors' heads."""
    per_shard = SIZES["H"] // num_shards
    shards = head_shards(describe(slice(0, SIZES["H"])), num_shards)
    slices = [describe(slice(shard * per_shard, (shard + 1) * per_shard)) for shard in range(num_shards)]
    for shard, expected in zip(shards, slices, strict=True):
        if per_shard == 1:
            shard.head_stride_bytes = expected.head_stride_bytes  # of one head it means nothing
        assert shard == expected


@pytest.mark.parametrize("num_shards", [1, 2, 4])
@pytest.mark.parametrize("order", ["".join(order) + "C" for order in permutations("LBHN")])
def test_shards_of_vllms_views_are_slices_of_their_heads(order: str, num_shards: int) -> None:
    with SharedBuffer.create(2 * np.prod(list(SIZES.values())).item()) as buffer:
        shared = SharedRegions()
        shared.add(buffer)
        backing = buffer.view(np.float16, tuple(SIZES[axis] for axis in order))
        views = list(np.transpose(backing, [order.index(axis) for axis in "LBHNC"]))
        for layout in (layouts.VLLM, layouts.VLLM_PACKED):

            def describe(heads: slice, layout: Any = layout) -> KvGroup:
                group: KvGroup = layout.from_tensors([view[:, heads] for view in views], shared)
                return group

            assert_slices(describe, num_shards)


@pytest.mark.parametrize("num_shards", [2, 4])
@pytest.mark.parametrize("layout", [layouts.NB_NL_TWO_BS_NH_HS, layouts.NB_NL_TWO_NH_BS_HS])
def test_shards_of_one_tensor_are_slices_of_its_heads(layout: layouts.Layout, num_shards: int) -> None:
    axes = layout.name.split("_")
    sizes = {"NB": 3, "NL": 2, "TWO": 2, "BS": 2, "NH": 4, "HS": 3}
    with SharedBuffer.create(layout.size_bytes(OTHER)) as buffer:
        shared = SharedRegions()
        shared.add(buffer)
        tensor = buffer.view(np.float16, tuple(sizes[axis] for axis in axes))

        def describe(heads: slice) -> KvGroup:
            index = tuple(heads if axis == "NH" else slice(None) for axis in axes)
            return layout.from_tensors(tensor[index], shared)

        assert_slices(describe, num_shards)


@pytest.mark.parametrize("num_shards", [0, 3, 8])
def test_heads_that_can_not_be_divided_are_refused(num_shards: int) -> None:
    group = layouts.VLLM_LBNHC.from_shape(OTHER)
    with pytest.raises(InvalidArgument, match=f"4 heads, which can't be split into {num_shards} equal shards"):
        head_shards(group, num_shards)


def test_latents_are_not_split() -> None:
    shape = KvShape(num_layers=1, num_blocks=3, block_size=2, head_size=4, dtype="float16")
    with pytest.raises(InvalidArgument, match="a latent, which belongs to all heads"):
        head_shards(layouts.NL_X_NB_BS_HS.from_shape(shape), 1)


def test_states_are_not_split() -> None:
    group = layouts.VLLM_LBNHC.from_shape(OTHER)
    group.holds_state = True
    with pytest.raises(InvalidArgument, match="states, which belong to all heads"):
        head_shards(group, 2)
