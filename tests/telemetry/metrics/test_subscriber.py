"""Events and their metrics, in cases that a real server rarely meets."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.events import (
    EVENT_TYPES,
    Event,
    InstanceAttached,
    InstanceDetached,
    LookupFinished,
    PinEnded,
    PrefixPinned,
    RetrieveFinished,
    SessionStarted,
    StoreFinished,
    TransferFinished,
    TransferStep,
)
from telemetry.kinds import PinEnd
from telemetry.metrics import definitions
from telemetry.metrics.attributes import OUTCOME
from telemetry.metrics.chunks import ChunksSubscriber
from telemetry.metrics.instruments import OTHER, Histogram
from telemetry.metrics.label_limiter import MAX_INSTANCES, MAX_MODELS, LabelLimiter
from telemetry.metrics.metric import Metric, histogram
from telemetry.metrics.subscriber import MetricsSubscriber

BOUNDARIES = (0.5, 1.0, 2.0)
HISTOGRAM = histogram("test.duration", "s", "A test's.", OUTCOME, boundaries=BOUNDARIES)


@pytest.fixture
def metrics() -> MetricsSubscriber:
    return MetricsSubscriber(LabelLimiter())


def lookup(**changes: Any) -> LookupFinished:
    fields: dict[str, Any] = {
        **{"operation_id": "1", "duration_seconds": 0.25, "outcome": "ok", "num_tokens": 32, "computed_tokens": 0},
        **{"matched_tokens": 32, "l1_tokens": 32, "l2_tokens": 0, "miss_reason": "", "instance_id": "e"},
        **{"matched_bytes": 3_200, "saved_prefill_seconds": None},
    }
    return LookupFinished(**{**fields, **changes})


def attached(instance_id: str, model_name: str) -> InstanceAttached:
    return InstanceAttached(
        instance_id=instance_id,
        model_name=model_name,
        world_size=1,
        rank=0,
        chunk_size=256,
        chunk_bytes=1,
        mapped_bytes=1,
        transfer_backend="host",
        prefill_tokens_per_second=None,
    )


def detached(instance_id: str, model_name: str) -> InstanceDetached:
    return InstanceDetached(instance_id=instance_id, model_name=model_name, rank=0, reason="closed", num_ranks_left=0)


def sums(metrics: MetricsSubscriber, metric: Metric) -> dict[tuple[str, ...], float]:
    return dict(metrics.read().get(metric, {}))


# From events


def test_every_type_of_event_is_taken(metrics: MetricsSubscriber, make_example: Any) -> None:
    batch: list[Event] = [make_example(event_type) for event_type in EVENT_TYPES.values()]
    metrics.handle(batch)
    ChunksSubscriber(LabelLimiter()).handle(batch)
    assert sum(sums(metrics, definitions.OPERATIONS).values()) == 3


def test_work_that_ends_after_its_instance_went_has_its_model(metrics: MetricsSubscriber) -> None:
    metrics.handle([attached("e", "llama"), detached("e", "llama"), lookup(outcome="cancelled")])
    assert sums(metrics, definitions.OPERATIONS) == {("lookup", "cancelled", "llama"): 1}


def test_a_model_is_known_from_a_session_if_the_attachment_was_dropped(metrics: MetricsSubscriber) -> None:
    metrics.handle([SessionStarted(instance_id="e", session_id="s", model_name="llama", traceparent=""), lookup()])
    assert sums(metrics, definitions.OPERATIONS) == {("lookup", "ok", "llama"): 1}


def test_work_of_an_instance_that_nothing_is_known_of_is_counted(metrics: MetricsSubscriber) -> None:
    metrics.handle([lookup()])
    assert sums(metrics, definitions.OPERATIONS) == {("lookup", "ok", OTHER): 1}


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, {}),
        ({"matched_tokens": 16, "l1_tokens": 16, "miss_reason": "evicted"}, {("evicted", OTHER): 16}),
        ({"num_tokens": 35}, {("shorter than chunk", OTHER): 3}),
        ({"matched_tokens": 0, "l1_tokens": 0, "outcome": "cancelled"}, {("no answer", OTHER): 32}),
        ({"matched_tokens": 0, "l1_tokens": 0, "outcome": "failed"}, {("no answer", OTHER): 32}),
    ],
)
def test_tokens_that_did_not_match_are_missed_for_a_reason(
    metrics: MetricsSubscriber, changes: dict[str, Any], missed: dict[tuple[str, ...], float]
) -> None:
    metrics.handle([lookup(**changes)])
    assert sums(metrics, definitions.LOOKUP_MISSED) == missed


def test_tiers_have_series_of_their_own(metrics: MetricsSubscriber) -> None:
    metrics.handle([lookup(l1_tokens=20, l2_tokens=12)])
    metrics.handle(
        [
            RetrieveFinished(
                operation_id="2",
                rank=0,
                duration_seconds=0.5,
                outcome="ok",
                retrieved_tokens=30,
                retrieved_bytes=300,
                l1_tokens=10,
                l2_tokens=20,
            )
        ]
    )
    assert sums(metrics, definitions.LOOKUP_MATCHED) == {("l1", OTHER): 20, ("l2", OTHER): 12}
    assert sums(metrics, definitions.RETRIEVE_TOKENS) == {("l1", OTHER): 10, ("l2", OTHER): 20}
    assert sums(metrics, definitions.OPERATION_IO) == {("retrieve", OTHER): 300}


def test_the_four_counts_of_a_store_have_series_of_their_own(metrics: MetricsSubscriber) -> None:
    store = StoreFinished(
        operation_id="3",
        rank=0,
        duration_seconds=0.5,
        outcome="partial",
        stored_tokens=1,
        resident_tokens=2,
        refused_tokens=3,
        tail_tokens=4,
        stored_bytes=10,
        refusal_reason="no slot",
    )
    metrics.handle([store, store])
    tokens = {result: count for (result, _), count in sums(metrics, definitions.STORE_TOKENS).items()}
    assert tokens == {"stored": 2, "resident": 4, "refused": 6, "tail": 8}
    assert sums(metrics, definitions.STORE_REFUSALS) == {("no slot", OTHER): 2}


@pytest.mark.parametrize(("outcome", "num_counted"), [("ok", 1), ("cancelled", 0), ("failed", 0)])
def test_only_transfers_that_went_well_count_for_bytes_and_speed(
    metrics: MetricsSubscriber, outcome: str, num_counted: int
) -> None:
    transfer = TransferFinished(
        operation_id="t",
        parent_operation_id="o",
        direction="store",
        rank=0,
        duration_seconds=0.5,
        outcome=outcome,
        num_chunks=1,
        num_bytes=1_000,
        backend="host",
        steps=(
            TransferStep(name="wait", start_seconds=0.0, duration_seconds=0.125),
            TransferStep(name="copy", start_seconds=0.125, duration_seconds=0.375),
        ),
    )
    metrics.handle([transfer])
    assert sums(metrics, definitions.TRANSFER_IO) == ({("store", "host"): 1_000} if num_counted else {})
    points = {each.metric.name: each.points() for each in metrics.histograms}
    assert len(points["kvdepot.transfer.throughput"]) == num_counted
    assert all(point.sum == 2_000 for point in points["kvdepot.transfer.throughput"])
    [duration] = points["kvdepot.transfer.duration"]
    assert (duration.attributes, duration.sum) == (("store", "host", outcome), 0.5)
    steps = {point.attributes: point.sum for point in points["kvdepot.transfer.step.duration"]}
    assert steps == {("store", "host", "wait"): 0.125, ("store", "host", "copy"): 0.375}


def test_pins_are_counted_by_kind_and_by_end(metrics: MetricsSubscriber) -> None:
    pin: dict[str, Any] = {"pin_id": "p", "model_name": "m", "num_chunks": 2, "num_bytes": 8}
    metrics.handle([PrefixPinned(was_pinned=again, expire_time=0.0, **pin) for again in (False, True, True)])
    metrics.handle([PinEnded(reason=PinEnd.EXPIRED, num_hits=1, duration_seconds=1.0, **pin)])
    assert sums(metrics, definitions.PINS_PINNED) == {("new",): 1, ("again",): 2}
    assert sums(metrics, definitions.PINS_ENDED) == {("expired",): 1}


# Instruments


def test_a_sum_without_attributes_is_there_from_the_start() -> None:
    assert MetricsSubscriber(LabelLimiter()).read() == {
        definitions.LEASES_GRANTED: {(): 0},
        definitions.L1_CLEARED: {(): 0},
    }


def test_a_sum_with_attributes_exists_once_something_was_added(metrics: MetricsSubscriber) -> None:
    metrics.handle([lookup(l1_tokens=32, l2_tokens=0)])
    assert sums(metrics, definitions.LOOKUP_MATCHED) == {("l1", OTHER): 32}


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 100.0]), max_size=30))
def test_values_count_one_by_one_as_they_do_by_the_array(values: list[float]) -> None:
    one_by_one, at_once = Histogram(HISTOGRAM), Histogram(HISTOGRAM)
    for value in values:
        one_by_one.observe(("ok",), value)
    at_once.observe_many(("ok",), np.array(values))
    series = [
        [(each.attributes, each.bucket_counts, each.sum, each.min, each.max, each.count) for each in kept.points()]
        for kept in (one_by_one, at_once)
    ]
    assert series[0] == series[1]
    if values:
        expected = [0] * (len(BOUNDARIES) + 1)
        for value in values:
            expected[bisect_left(BOUNDARIES, value)] += 1
        assert list(series[0][0][1]) == expected


# Models


def test_the_number_of_models_with_a_label_is_bounded() -> None:
    models = LabelLimiter()
    names = [models.exported(f"model-{number}") for number in range(MAX_MODELS + 5)]
    assert names[:MAX_MODELS] == [f"model-{number}" for number in range(MAX_MODELS)]
    assert set(names[MAX_MODELS:]) == {OTHER}
    assert models.exported("model-3") == "model-3"


def test_instances_are_forgotten_the_oldest_first() -> None:
    models = LabelLimiter()
    for number in range(MAX_INSTANCES + 1):
        models.note(f"e{number}", "m")
    assert (models.of("e0"), models.of("e1"), models.of(f"e{MAX_INSTANCES}")) == (OTHER, "m", "m")


def test_an_instance_may_come_back_with_another_model() -> None:
    models = LabelLimiter()
    models.note("e", "llama")
    models.note("e", "qwen")
    assert models.of("e") == "qwen"
