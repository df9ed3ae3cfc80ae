"""Sums by instance: hits and saved time, for a limited number of instances."""

from __future__ import annotations

from typing import Any

import pytest

from telemetry.events import InstanceAttached, InstanceDetached, LookupFinished, RetrieveFinished, StoreStarted
from telemetry.metrics import hit_definitions as definitions
from telemetry.metrics import instances
from telemetry.metrics.instances import InstancesSubscriber
from telemetry.metrics.label_limiter import LabelLimiter
from telemetry.metrics.metric import Metric


@pytest.fixture
def subscriber() -> InstancesSubscriber:
    return InstancesSubscriber(LabelLimiter())


def attached(instance_id: str, rate: float | None = None, **changes: Any) -> InstanceAttached:
    return InstanceAttached(
        instance_id=instance_id,
        model_name="m",
        world_size=2,
        rank=0,
        chunk_size=256,
        chunk_bytes=1,
        mapped_bytes=1,
        transfer_backend="host",
        prefill_tokens_per_second=rate,
        **changes,
    )


def detached(instance_id: str, num_ranks_left: int = 0) -> InstanceDetached:
    return InstanceDetached(
        instance_id=instance_id, model_name="m", rank=0, reason="closed", num_ranks_left=num_ranks_left
    )


def looked_up(instance_id: str, num_tokens: int = 100, matched_tokens: int = 60, **changes: Any) -> LookupFinished:
    facts: dict[str, Any] = {
        **{"session_id": "s", "operation_id": "1", "duration_seconds": 0.001, "outcome": "partial", "miss_reason": ""},
        **{"num_tokens": num_tokens, "computed_tokens": 0, "matched_tokens": matched_tokens},
        **{"l1_tokens": matched_tokens, "l2_tokens": 0, "instance_id": instance_id},
        **{"matched_bytes": 1, "saved_prefill_seconds": None},
    }
    return LookupFinished(**{**facts, **changes})


def stored(instance_id: str, monotonic: float) -> StoreStarted:
    return StoreStarted(
        instance_id=instance_id,
        session_id="s",
        monotonic=monotonic,
        operation_id="1",
        traceparent="",
        rank=0,
        num_tokens=1_000,
        start_token=0,
        inline=False,
    )


def retrieved(instance_id: str, rank: int = 0, num_tokens: int = 60) -> RetrieveFinished:
    return RetrieveFinished(
        instance_id=instance_id,
        session_id="s",
        operation_id="1",
        rank=rank,
        duration_seconds=0.001,
        outcome="ok",
        retrieved_tokens=num_tokens,
        retrieved_bytes=1,
        l1_tokens=num_tokens,
        l2_tokens=0,
    )


def sums(subscriber: InstancesSubscriber, metric: Metric) -> dict[tuple[str, ...], float]:
    return dict(subscriber.read()[metric])


def test_tokens_are_summed_by_instance_and_tenant(subscriber: InstancesSubscriber) -> None:
    subscriber.handle([attached("a"), attached("a", tenant="red"), looked_up("a"), looked_up("a", tenant="red")])
    subscriber.handle([looked_up("a", 50, 0)])
    assert sums(subscriber, definitions.INSTANCE_LOOKUP_TOKENS) == {("a", "m"): 150, ("red/a", "m"): 100}
    assert sums(subscriber, definitions.INSTANCE_MATCHED) == {("a", "m"): 60, ("red/a", "m"): 60}


def test_saved_time_is_the_tokens_of_one_rank_over_the_rate(subscriber: InstancesSubscriber) -> None:
    subscriber.handle([attached("a", 20.0), retrieved("a"), retrieved("a", rank=1)])
    assert sums(subscriber, definitions.PREFILL_SAVED) == {("a", "m", "reported"): 3.0}
    assert sums(subscriber, definitions.PREFILL_RATE) == {("a", "m", "reported"): 20.0}


def test_nothing_is_saved_while_the_rate_is_not_known(subscriber: InstancesSubscriber) -> None:
    subscriber.handle([attached("a"), retrieved("a")])
    assert sums(subscriber, definitions.PREFILL_SAVED) == sums(subscriber, definitions.PREFILL_RATE) == {}


def test_a_rate_is_measured_from_what_neither_the_engine_nor_the_depot_had(subscriber: InstancesSubscriber) -> None:
    subscriber.handle([attached("a")])
    for second in range(0, 50, 10):
        subscriber.handle(
            [looked_up("a", 1_000, 0, computed_tokens=600, monotonic=float(second)), stored("a", second + 2)]
        )
    subscriber.handle([retrieved("a", num_tokens=100)])
    assert sums(subscriber, definitions.PREFILL_RATE) == {("a", "m", "measured"): 200.0}
    assert sums(subscriber, definitions.PREFILL_SAVED) == {("a", "m", "measured"): 0.5}


def test_an_instance_that_is_gone_keeps_its_sums_and_has_no_rate(subscriber: InstancesSubscriber) -> None:
    subscriber.handle([attached("a", 20.0), looked_up("a"), retrieved("a"), detached("a", num_ranks_left=1)])
    assert sums(subscriber, definitions.PREFILL_RATE)
    subscriber.handle([detached("a")])
    assert sums(subscriber, definitions.INSTANCE_LOOKUP_TOKENS) == {("a", "m"): 100}
    assert sums(subscriber, definitions.PREFILL_SAVED) == {("a", "m", "reported"): 3.0}
    assert sums(subscriber, definitions.PREFILL_RATE) == {}


def test_a_new_instance_takes_the_place_of_the_one_that_ended_first(
    subscriber: InstancesSubscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "MAX_INSTANCES", 4)
    for name in ("a", "b", "c"):
        subscriber.handle([attached(name), looked_up(name)])
    subscriber.handle([detached("b"), detached("a"), attached("a"), attached("d"), looked_up("d")])
    assert set(sums(subscriber, definitions.INSTANCE_LOOKUP_TOKENS)) == {("a", "m"), ("c", "m"), ("d", "m")}
    subscriber.handle([attached("e"), looked_up("e")])
    assert ("a", "m") in sums(subscriber, definitions.INSTANCE_LOOKUP_TOKENS), "it is attached again"


def test_instances_beyond_the_limit_are_other(subscriber: InstancesSubscriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "MAX_INSTANCES", 2)
    subscriber.handle([attached(name) for name in ("a", "b", "c")])
    subscriber.handle([looked_up(name) for name in ("a", "b", "c")])
    assert sums(subscriber, definitions.INSTANCE_LOOKUP_TOKENS) == {("a", "m"): 100, ("other", "other"): 200}
