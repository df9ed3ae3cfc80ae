"""The names of workers, sessions and salts at the depot."""

from __future__ import annotations

import pytest

from kvdepot.connector.identity import CacheIdentity, salt_of, session_id_of, traceparent_of, worker_id

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_workers_with_equal_kv_are_replicas_of_one_rank() -> None:
    workers = [worker_id("engine", worker, 4, 2) for worker in range(4)]
    assert [(each.instance_id, each.rank, each.stores) for each in workers] == [
        ("engine-replica0", 0, True),
        ("engine-replica1", 0, False),
        ("engine-replica0", 1, True),
        ("engine-replica1", 1, False),
    ]
    assert {each.world_size for each in workers} == {2}
    alone = worker_id("engine", 1, 2, 1)
    assert (alone.instance_id, alone.rank, alone.world_size, alone.stores) == ("engine", 1, 2, True)


@pytest.mark.parametrize(("tensor_parallel_size", "shards_per_worker"), [(1, 4), (2, 2), (4, 1)])
def test_engines_of_all_sizes_are_the_same_ranks_by_their_shards(
    tensor_parallel_size: int, shards_per_worker: int
) -> None:
    for num_stages in (1, 3):
        workers = [
            worker_id("e", n, tensor_parallel_size * num_stages, 1) for n in range(tensor_parallel_size * num_stages)
        ]
        shards = [shard for worker in workers for shard in worker.shards(shards_per_worker)]
        assert [each.rank for each in shards] == list(range(4 * num_stages))
        assert {each.world_size for each in shards} == {4 * num_stages}


def test_kv_in_shards_has_a_name_of_its_own_that_the_depot_accepts() -> None:
    identity = CacheIdentity(model_name="model", model_revision="r", block_hash_seed="s")
    names = [identity.in_head_shards(count).model_name for count in (0, 1, 2, 4)]
    assert names == ["model", "model in 1 head shards", "model in 2 head shards", "model in 4 head shards"]
    assert identity.in_head_shards(4).model_revision == "r"
    long = {CacheIdentity(model_name="x" * 512 + end).in_head_shards(4).model_name for end in "ab"}
    assert len(long) == 2
    assert all(name.endswith(" in 4 head shards") and len(name) <= 512 for name in long)


def test_salts_of_requests_and_generations_of_weights_never_give_one_name() -> None:
    generations: list[tuple[str, ...]] = [(), ("own",), ("run", "1"), ("run 1",), ("run", "1", ""), ("run", '1", "2')]
    salts = ["", "salt", "run", '1"}', '{"generation": ["run", "1"], "salt": "salt"}', '{"generation": [], "salt": ""}']
    salts += [salt_of(salt, generation) for salt in salts for generation in generations]
    named = {(salt, generation): salt_of(salt, generation) for salt in set(salts) for generation in generations}
    assert len(set(named.values())) == len(named)
    assert (salt_of(""), salt_of("salt")) == ("", "salt")


def test_trace_context_is_found_in_any_case_of_its_name() -> None:
    assert (traceparent_of({"TraceParent": PARENT}), traceparent_of({}), traceparent_of(None)) == (PARENT, "", "")


@pytest.mark.parametrize("sent", ["", "00-1-2-01", PARENT + "\n", PARENT + "é", PARENT.upper().replace("0", "G")])
def test_trace_that_is_none_is_not_passed_on(sent: str) -> None:
    assert traceparent_of({"traceparent": sent}) == ""


@pytest.mark.parametrize("name", ["x" * 3000, "é" * 200, "\ud800"], ids=["long", "long in bytes", "no text"])
def test_any_name_of_a_request_becomes_one_that_the_depot_accepts(name: str) -> None:
    for taken, most in ((session_id_of(name), 256), (salt_of(name), 256)):
        assert len(taken.encode()) <= most
    assert session_id_of("ééé") == "ééé"


def test_names_that_are_too_long_for_the_depot_stay_apart() -> None:
    salts = {salt_of("x" * 300 + end) for end in "ab"}
    assert len(salts) == 2
    assert all(len(salt) <= 256 for salt in salts)
