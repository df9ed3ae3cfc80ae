"""The facts of an engine: wrong ones are refused, all at once; the scheduler's settings follow from them."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from typing import Any

import pytest

from kvdepot.connector import (
    CacheGroup,
    CacheIdentity,
    ConfigError,
    ConnectedScheduler,
    ConnectorConfig,
    EngineFacts,
    RequestTraits,
    open_worker,
)
from kvdepot.connector.scheduler_settings import SchedulerSettings

FACTS = EngineFacts(
    engine_id="pod-1",
    identity=CacheIdentity(model_name="model"),
    groups=(CacheGroup(block_size=16), CacheGroup(block_size=16, window=64)),
    num_blocks=100,
    hash_block_size=16,
    num_workers=4,
    num_replicas=2,
    steps_ahead=1,
    stores=False,
)


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"engine_id": ""}, ["engine_id is empty"]),
        ({"groups": ()}, ["groups is empty"]),
        ({"groups": (CacheGroup(block_size=0),)}, ["a group has blocks of 0 tokens"]),
        ({"hash_block_size": 32}, ["blocks of 16 tokens, which is no multiple of 32"] * 2),
        ({"identity": CacheIdentity(model_name="")}, ["identity.model_name is empty"]),
        ({"num_blocks": 0, "hash_block_size": -1}, ["num_blocks is 0", "hash_block_size is -1"]),
        ({"num_workers": 0}, ["num_workers is 0"]),
        ({"num_replicas": 0}, ["num_replicas is 0"]),
        ({"num_workers": 3}, ["3 workers can't hold the KV 2 times"]),
        ({"steps_ahead": -1}, ["steps_ahead is -1"]),
        ({"tensor_parallel_size": 3}, ["tensor_parallel_size is 3, and must divide the 4 workers"]),
        ({"tensor_parallel_size": -1}, ["tensor_parallel_size is -1"]),
    ],
)
def test_wrong_facts_are_refused_and_all_are_named(changes: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        replace(FACTS, **changes)
    assert all(fault in str(raised.value) for fault in faults)
    assert str(raised.value).count(";") == len(faults) - 1


def test_the_facts_go_to_other_processes_unchanged() -> None:
    assert pickle.loads(pickle.dumps(FACTS)) == FACTS


@pytest.mark.parametrize(
    ("num_workers", "tensor_parallel_size", "expected"),
    [(1, 0, 4), (1, 1, 4), (2, 2, 2), (4, 4, 1), (4, 2, 2), (3, 1, 4)],
    ids=["one worker", "size 1", "size 2", "size 4", "two stages of size 2", "three stages of size 1"],
)
def test_each_worker_has_its_part_of_the_shards(num_workers: int, tensor_parallel_size: int, expected: int) -> None:
    facts = replace(FACTS, num_workers=num_workers, tensor_parallel_size=tensor_parallel_size, num_replicas=1)
    assert facts.shards_per_worker(ConnectorConfig(head_shards=4)) == expected
    assert facts.shards_per_worker(ConnectorConfig()) == 1


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"tensor_parallel_size": 4, "num_replicas": 1}, "head_shards is 6, and must be a multiple of 4, the tensor-"),
        ({"num_replicas": 1}, "needs an engine that says its tensor_parallel_size"),
        ({"tensor_parallel_size": 2}, "2 workers hold equal KV"),
        (
            {"tensor_parallel_size": 2, "num_replicas": 1, "groups": (CacheGroup(block_size=16, holds_state=True),)},
            "a group holds states, which can't be split by heads",
        ),
    ],
    ids=["no multiple", "not known", "replicas", "states"],
)
def test_engine_that_shards_do_not_fit_starts_neither_side(changes: dict[str, Any], fault: str) -> None:
    facts, config = replace(FACTS, **changes), ConnectorConfig(head_shards=6)
    with pytest.raises(ConfigError, match=fault):
        open_worker(config, facts, 0)
    with pytest.raises(ConfigError, match=fault):
        ConnectedScheduler(config, facts, lambda request: RequestTraits())


def test_the_scheduler_has_the_engines_facts_and_the_users_timeouts() -> None:
    config = ConnectorConfig(
        lookup_timeout_seconds=0.25,
        retrieve_timeout_seconds=7.0,
        store_timeout_seconds=3.0,
        lease_hold_seconds=2.0,
        prefill_tokens_per_second=1e4,
    )
    settings = FACTS.scheduler_settings(config)
    assert (settings.groups, settings.num_blocks, settings.hash_block_size) == (FACTS.groups, 100, 16)
    assert (settings.num_workers, settings.steps_ahead, settings.loads, settings.stores) == (4, 1, True, False)
    assert settings.lookup_timeout_seconds == 0.25
    assert settings.longest_transfer_seconds == 7.0
    assert settings.lease_hold_seconds == 2.0
    assert settings.prefill_tokens_per_second == 1e4


def test_each_setting_of_the_user_that_the_scheduler_has_reaches_it() -> None:
    user = {field.name: field for field in fields(ConnectorConfig)}
    shared = [field.name for field in fields(SchedulerSettings) if field.name in user]
    assert len(shared) > 2
    values = {name: _another(user[name].default) for name in shared}
    settings = FACTS.scheduler_settings(ConnectorConfig(**values))
    assert {name: getattr(settings, name) for name in shared} == values


def _another(default: Any) -> Any:
    """Return a value that is not the default."""
    match default:
        case bool():
            return not default
        case str():
            return f"{default}x"
        case _:
            return default + 1
