"""The names of workers, sessions and salts at the depot."""

from __future__ import annotations

import pytest

from kvdepot.connector.identity import salt_of, session_id_of, traceparent_of, worker_id

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
