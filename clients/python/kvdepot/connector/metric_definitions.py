"""The metrics that a connector gives to its engine's own metrics page. The engine adds its prefix and its labels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LOAD, STORE = "load", "store"
HIT, MISS, UNUSED, FAILED, LATE = "hit", "miss", "unused", "failed", "late"
DIRECTIONS = ((LOAD,), (STORE,))
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class MetricKind(StrEnum):
    """The kinds of metrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """One metric: `labels` are the names of its labels, and `series` are the values that are known beforehand.

    `buckets` are the upper bounds of a histogram's buckets, ascending, without infinity.
    """

    name: str
    kind: MetricKind
    text: str
    labels: tuple[str, ...] = ()
    series: tuple[tuple[str, ...], ...] = ((),)
    buckets: tuple[float, ...] = ()


_DEFINITIONS = (
    MetricDefinition(
        "tokens",
        MetricKind.COUNTER,
        "Tokens that loads wrote into the KV cache, and that stores copied into the depot.",
        ("direction",),
        DIRECTIONS,
    ),
    MetricDefinition(
        "bytes", MetricKind.COUNTER, "Bytes of these tokens, of all workers together.", ("direction",), DIRECTIONS
    ),
    MetricDefinition(
        "resident_tokens", MetricKind.COUNTER, "Tokens that were not stored because the depot had them already."
    ),
    MetricDefinition(
        "refused_tokens", MetricKind.COUNTER, "Tokens that the depot refused to store.", ("reason",), series=()
    ),
    MetricDefinition(
        "failed_tokens",
        MetricKind.COUNTER,
        "Tokens that were found and not loaded, so that the engine computes them; tokens that were not stored because "
        "a call failed.",
        ("direction",),
        DIRECTIONS,
    ),
    MetricDefinition(
        "failed_transfers",
        MetricKind.COUNTER,
        "Loads and stores that failed, and loads that ended early.",
        ("direction", "reason"),
        series=(),
    ),
    MetricDefinition(
        "transfer_seconds",
        MetricKind.HISTOGRAM,
        "Time of a load's or a store's call to the depot, of the slowest worker.",
        ("direction",),
        DIRECTIONS,
        SECONDS,
    ),
    MetricDefinition(
        "lookups",
        MetricKind.COUNTER,
        "Lookups of requests that the engine admits. It loads a hit. A miss finds no more than the engine has. What is "
        "found may stay unused. A failed lookup gets no answer, and a late one gets it too late.",
        ("result",),
        ((HIT,), (MISS,), (UNUSED,), (FAILED,), (LATE,)),
    ),
    MetricDefinition(
        "lookup_wait_seconds",
        MetricKind.HISTOGRAM,
        "Time that such a request waited for answers, and for other loads to end.",
        buckets=SECONDS,
    ),
    MetricDefinition("attached_workers", MetricKind.GAUGE, "Workers of the engine that are attached to the depot."),
)
METRICS = {definition.name: definition for definition in _DEFINITIONS}
"""All metrics by name."""
