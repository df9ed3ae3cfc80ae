"""What a metric is: a name, and what its figures mean."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from telemetry.metrics.array_histogram import HistogramPoint

Attributes = tuple[str, ...]
"""The values of a metric's attributes, in the order of their names."""

# What OpenTelemetry's Prometheus exporter makes of our units; what stands in braces is for people.
_PROMETHEUS_UNITS = {"s": "seconds", "By": "bytes", "By/s": "bytes_per_second"}


class Kind(StrEnum):
    """How figures behave over time."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Attribute:
    """What figures are split by. Without ``values`` the meaning says why there can't be many."""

    name: str
    meaning: str
    values: Attributes = ()


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric, compared by identity. ``boundaries`` are those of a histogram's buckets.

    ``prometheus_stem`` stands in for the name where the rules of OpenTelemetry and of Prometheus contradict each other.
    """

    kind: Kind
    name: str
    unit: str
    description: str
    attributes: tuple[Attribute, ...] = ()
    boundaries: tuple[float, ...] = ()
    prometheus_stem: str = ""

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """The names of its attributes."""
        return tuple(attribute.name for attribute in self.attributes)

    @property
    def prometheus_name(self) -> str:
        """The name of the metric as it stands on the page that Prometheus scrapes."""
        parts = [
            prometheus_stem(self.prometheus_stem or self.name),
            prometheus_unit(self.unit),
            "total" if self.kind is Kind.COUNTER else "",
        ]
        return "_".join(filter(None, parts))


def prometheus_stem(name: str) -> str:
    """A name without dots."""
    return name.replace(".", "_")


def prometheus_unit(unit: str) -> str:
    """What ends a metric's name; empty for what is counted."""
    return _PROMETHEUS_UNITS.get(unit, "")


class ReadableHistogram(Protocol):
    """A histogram that can be exported; bucket i holds what is at most ``boundaries[i]``."""

    name: str
    unit: str
    description: str
    attribute_names: tuple[str, ...]
    boundaries: tuple[float, ...]

    def points(self) -> list[HistogramPoint]:
        """All that was observed so far."""


def counter(name: str, unit: str, description: str, *attributes: Attribute, prometheus_stem: str = "") -> Metric:
    """A sum that only grows."""
    return Metric(Kind.COUNTER, name, unit, description, attributes, prometheus_stem=prometheus_stem)


def gauge(name: str, unit: str, description: str, *attributes: Attribute, prometheus_stem: str = "") -> Metric:
    """A figure as it is now."""
    return Metric(Kind.GAUGE, name, unit, description, attributes, prometheus_stem=prometheus_stem)


def histogram(name: str, unit: str, description: str, *attributes: Attribute, boundaries: tuple[float, ...]) -> Metric:
    """Values counted in buckets."""
    return Metric(Kind.HISTOGRAM, name, unit, description, attributes, boundaries)
