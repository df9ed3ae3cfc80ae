"""Snapshots of statistics: they add up, keep what a histogram needs, and stay small."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram

from kvdepot.connector.metric_definitions import METRICS, SECONDS, MetricDefinition, MetricKind
from kvdepot.connector.snapshots import Snapshot

seconds = st.one_of(st.sampled_from(SECONDS), st.floats(0.0, 100.0))


def snapshot_of(values: list[float]) -> Snapshot:
    snapshot = Snapshot()
    for value in values:
        snapshot.observe("transfer_seconds", value, "load")
    return snapshot


@given(st.lists(seconds, max_size=20), st.lists(seconds, max_size=20))
def test_histogram_that_observes_a_snapshot_is_the_one_that_observed_the_values(
    before: list[float], later: list[float]
) -> None:
    snapshot = snapshot_of(before)
    snapshot.merge(Snapshot(json.loads(json.dumps(snapshot_of(later).values))))  # as an engine sends it
    expected = Histogram("seconds", "", buckets=SECONDS, registry=None)
    found = Histogram("seconds", "", buckets=SECONDS, registry=None)
    for value in before + later:
        expected.observe(value)
    for sample in snapshot.samples():
        assert sample.labels == ("load",)
        for value in sample.values:
            found.observe(value)
    values = [
        {
            (sample.name, sample.labels.get("le")): sample.value
            for metric in histogram.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }
        for histogram in (expected, found)
    ]
    assert values[0].keys() == values[1].keys()
    assert all(math.isclose(values[0][key], values[1][key], abs_tol=1e-9) for key in values[0])


def test_size_does_not_grow_with_what_has_happened() -> None:
    snapshot = Snapshot()
    for number in range(10_000):
        snapshot.observe("transfer_seconds", number / 100, "store")
        snapshot.add("tokens", 256, "store")
    assert len(json.dumps(snapshot.values)) < 2_000
    assert snapshot.values["tokens"] == {"store": 2_560_000}


def test_counters_add_up_and_the_later_gauge_counts() -> None:
    one, two = Snapshot(), Snapshot()
    assert one.is_empty
    one.add("failed_transfers", 1, "load", "CHUNK_LOST")
    one.set("attached_workers", 2)
    two.add("failed_transfers", 2, "load", "CHUNK_LOST")
    two.add("failed_transfers", 4, "store", "NOT_ATTACHED")
    two.set("attached_workers", 0)
    one.merge(two)
    found = {(sample.name, *sample.labels): sample.values for sample in one.samples()}
    assert found == {
        ("failed_transfers", "load", "CHUNK_LOST"): (3,),
        ("failed_transfers", "store", "NOT_ATTACHED"): (4,),
        ("attached_workers",): (0,),
    }


def test_summary_says_what_happened_and_nothing_else() -> None:
    snapshot = snapshot_of([0.01, 0.03])
    snapshot.add("tokens", 512, "load")
    snapshot.add("bytes", 3 << 20, "load")
    snapshot.add("refused_tokens", 256, "NO_SLOT")
    snapshot.add("lookups", 2, "hit")
    assert snapshot.summary() == {
        "loaded tokens": 512,
        "loaded MiB": 3.0,
        "mean load ms": 20.0,
        "refused tokens": 256,
        "lookups": 2,
        "lookups: hit": 2,
    }
    assert Snapshot().summary() == {}


@pytest.mark.parametrize("definition", METRICS.values(), ids=METRICS.keys())
def test_definitions_are_whole(definition: MetricDefinition) -> None:
    assert (definition.kind is MetricKind.HISTOGRAM) == bool(definition.buckets)
    assert list(definition.buckets) == sorted(definition.buckets)
    assert all(len(series) == len(definition.labels) for series in definition.series)
    assert definition.text.endswith(".")


def test_every_metric_is_in_the_docs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text()
    for name, definition in METRICS.items():
        suffix = "_total" if definition.kind is MetricKind.COUNTER else ""
        labels = "".join(f", `{label}`" for label in definition.labels)
        assert f"| `vllm:kvdepot_{name}{suffix}` | {definition.kind}{labels} |" in text
