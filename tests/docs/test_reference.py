"""The reference pages name every metric and every event."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from telemetry.events import EVENT_TYPES
from telemetry.metrics.definitions import METRICS

DOCS = Path(__file__).parents[2] / "docs"


def test_every_metric_stands_there_once_with_both_its_names() -> None:
    page = (DOCS / "metrics.md").read_text()
    for metric in METRICS:
        assert page.count(f"| `{metric.prometheus_name}` | `{metric.name}` | {metric.kind} |") == 1
        assert metric.description.endswith(".")


def test_metrics_have_names_of_their_own_without_units() -> None:
    metrics = METRICS
    assert (
        len({metric.name for metric in metrics}) == len({metric.prometheus_name for metric in metrics}) == len(metrics)
    )
    for metric in metrics:
        assert not metric.name.endswith(("seconds", "bytes", "total"))


def test_every_event_stands_there_with_its_fields() -> None:
    page = (DOCS / "events.md").read_text()
    sections = dict(section.split("\n", 1) for section in page.split("\n### ")[1:])
    common = {"time", "monotonic", "instance_id", "session_id", "tenant"}
    for name, event_type in EVENT_TYPES.items():
        listed = {line.split("`")[1] for line in sections[name].splitlines() if line.startswith("| `")}
        assert listed == {field.name for field in fields(event_type)} - common, name


def test_pairs_name_each_other() -> None:
    page = (DOCS / "events.md").read_text()
    for work in ("Lookup", "Store", "Retrieve", "Transfer"):
        assert f"Pairs with [{work}Finished](#{work.lower()}finished)." in page
        assert f"Pairs with [{work}Started](#{work.lower()}started)." in page
    assert "[SessionFinished]" not in page
