"""docs/metrics.md: each metric with its names, unit, attributes and meaning."""

from __future__ import annotations

from collections.abc import Sequence

from telemetry.metrics.definitions import METRICS
from telemetry.metrics.metric import Attribute, Kind, Metric
from tools.generate.tables import GENERATED, table

_INTRODUCTION = f"""\
{GENERATED}
# Metrics

The depot serves its metrics for Prometheus at `http://HOST:PORT/metrics` (`--prometheus-host`, `--prometheus-port`), or
sends them to a collector over OTLP (`--otlp-endpoint`) once a minute, or as the variable `OTEL_METRIC_EXPORT_INTERVAL`
says, in milliseconds. With `--disable-metrics` it measures nothing. On the page for Prometheus a metric has the name of
the first column, and the dots of attributes are underscores; a collector gets the names of the second. Sums and
histograms grow from the start of the server on. A line with attributes is there once something was counted under them.

Counts made from events lack dropped events, see `kvdepot_events_dropped_total`. Gauges lack nothing.
"""

# By how the names begin; the first that fits.
_SECTIONS = {
    "Lookups, stores, retrieves": ("kvdepot.operation", "kvdepot.lookup", "kvdepot.store", "kvdepot.retrieve"),
    "Instances: hits, and prefill that was saved": ("kvdepot.instance.", "kvdepot.prefill"),
    "Transfers between blocks and chunks": ("kvdepot.transfer",),
    "L1: the depot's chunks": ("kvdepot.l1",),
    "L2: the tiers behind L1": ("kvdepot.tier.",),
    "Sizing: what another L1 would have hit": ("kvdepot.sizing", "kvdepot.eviction"),
    "L0: the engines' blocks": ("kvdepot.l0",),
    "Leases, pins, sessions, attachments": (
        *("kvdepot.leases", "kvdepot.pins", "kvdepot.prefetch.", "kvdepot.sessions", "kvdepot.instances"),
        "kvdepot.attachments",
    ),
    "Tenants, and who may call": ("kvdepot.tenant", "kvdepot.access", "kvdepot.files", "kvdepot.tls"),
    "Recorded requests": ("kvdepot.recording",),
    "KV events for routers": ("kvdepot.kv_events",),
    "Events": ("kvdepot.event_queue", "kvdepot.events", "kvdepot.subscriber"),
    "The server": (
        "rpc.",
        "kvdepot.build_info",
        "kvdepot.rpcs",
        "kvdepot.draining",
        "kvdepot.event_loop",
        "kvdepot.log",
        "process.",
        "cpython.",
    ),
}


def metrics_page() -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION]
    for title, prefixes in _SECTIONS.items():
        members = [metric for metric in METRICS if metric.name.startswith(prefixes)]
        parts += [f"## {title}\n", _metrics(members), ""]
        if any(metric.attributes for metric in members):
            parts += [_attributes(members), ""]
    parts += ["## Buckets\n", "Upper ends, in the unit of the histogram.\n", _buckets(METRICS)]
    return "\n".join(parts) + "\n"


def _metrics(metrics: Sequence[Metric]) -> str:
    rows = (
        (
            f"`{metric.prometheus_name}`",
            f"`{metric.name}`",
            metric.kind,
            metric.unit,
            ", ".join(f"`{attribute.name}`" for attribute in metric.attributes),
            metric.description,
        )
        for metric in metrics
    )
    return table(("Prometheus", "OpenTelemetry", "type", "unit", "attributes", "meaning"), rows)


def _attributes(metrics: Sequence[Metric]) -> str:
    """Return each attribute once. If several attributes have its name, list the metrics that have it."""
    attributes: dict[Attribute, list[Metric]] = {}
    for metric in metrics:
        for attribute in metric.attributes:
            attributes.setdefault(attribute, []).append(metric)
    names = [attribute.name for attribute in attributes]
    rows = []
    for attribute, members in attributes.items():
        of = ", ".join(f"`{member.name}`" for member in members) if names.count(attribute.name) > 1 else ""
        values = ", ".join(f"`{value}`" for value in attribute.values)
        rows.append((f"`{attribute.name}`" + (f" of {of}" if of else ""), attribute.meaning, values))
    return table(("attribute", "meaning", "values"), rows)


def _buckets(metrics: Sequence[Metric]) -> str:
    by_boundaries: dict[tuple[float, ...], list[Metric]] = {}
    for metric in metrics:
        if metric.kind is Kind.HISTOGRAM:
            by_boundaries.setdefault(metric.boundaries, []).append(metric)
    rows = (
        (", ".join(f"`{metric.name}`" for metric in members), " ".join(f"{boundary:g}" for boundary in boundaries))
        for boundaries, members in by_boundaries.items()
    )
    return table(("metrics", "boundaries"), rows)
