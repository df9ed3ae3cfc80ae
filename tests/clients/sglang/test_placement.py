"""Which rank of which instance a process of SGLang is."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from kvdepot.sglang.placement import placement


def storage(**changed: Any) -> SimpleNamespace:
    """Return SGLang's storage config of one rank, with some fields changed."""
    one = {"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1}
    return SimpleNamespace(**{**one, "dp_rank": 0, **changed})


def test_all_ranks_of_heads_and_layers_are_one_instance() -> None:
    ranks = [
        placement("e", storage(tp_rank=tensor, tp_size=4, pp_rank=pipeline, pp_size=2), "kv")
        for pipeline, tensor in itertools.product(range(2), range(4))
    ]
    assert {(each.instance_id, each.world_size, each.shard) for each in ranks} == {("e", 8, "")}
    assert [each.rank for each in ranks] == list(range(8))


def test_each_tensor_rank_of_a_latent_pool_is_an_instance_with_all_of_it() -> None:
    ranks = [
        placement("e", storage(tp_rank=number, tp_size=3), "kv", equal_in_tensor_ranks=True) for number in range(3)
    ]
    assert [each.instance_id for each in ranks] == ["e", "e-replica1", "e-replica2"]
    assert {(each.rank, each.world_size, each.shard) for each in ranks} == {(0, 1, "")}
    assert [each.replica for each in ranks] == [0, 1, 2]


def test_pools_with_heads_beside_a_latent_pool_are_split() -> None:
    ranks = [placement("e", storage(tp_rank=number, tp_size=2), "mamba") for number in range(2)]
    assert [(each.instance_id, each.rank, each.world_size) for each in ranks] == [("e-mamba", 0, 2), ("e-mamba", 1, 2)]


@pytest.mark.parametrize("apart", [{"num_nodes": 2}, {"attn_cp_size": 2}], ids=str)
def test_ranks_that_one_depot_does_not_see_are_instances_with_a_shard_each(apart: dict[str, int]) -> None:
    num_nodes = apart.get("num_nodes", 1)
    cp_size = apart.get("attn_cp_size", 1)
    places = [
        placement(
            "e", storage(tp_rank=rank, tp_size=2, attn_cp_rank=cp, attn_cp_size=cp_size), "kv", num_nodes=num_nodes
        )
        for rank, cp in itertools.product(range(2), range(cp_size))
    ]
    assert {(each.rank, each.world_size) for each in places} == {(0, 1)}
    assert len({each.instance_id for each in places}) == len({each.shard for each in places}) == len(places)
    assert all(each.shard for each in places)


def test_no_two_ranks_and_pools_have_one_place() -> None:
    places = [
        placement("e", storage(tp_rank=tensor, tp_size=2, pp_rank=pipeline, pp_size=2, dp_rank=data), pool)
        for tensor, pipeline, data, pool in itertools.product(range(2), range(2), range(2), ("kv", "swa", "draft"))
    ]
    assert len({(each.instance_id, each.rank) for each in places}) == len(places)
