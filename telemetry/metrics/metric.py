"""The definition of a metric: its names, and what its values mean."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Attributes = tuple[str, ...]
"""The values of a metric's attributes, in the order of their names."""

# OpenTelemetry's Prometheus exporter writes our units like this. Units in braces are for people only.
_PROMETHEUS_UNITS = {"s": "seconds", "By": "bytes", "By/s": "bytes_per_second"}


class Kind(StrEnum):
    """How the values of a metric behave over time."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of values. Without `values`, the meaning says why there can't be many."""

    name: str
    meaning: str
    values: Attributes = ()


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric, compared by identity. `boundaries` are those of a histogram's buckets.

    `prometheus_stem` replaces the name where the rules of OpenTelemetry and of Prometheus contradict each other.
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
        """The name of the metric on the page that Prometheus scrapes."""
        parts = [
            prometheus_stem(self.prometheus_stem or self.name),
            prometheus_unit(self.unit),
            "total" if self.kind is Kind.COUNTER else "",
        ]
        return "_".join(filter(None, parts))


def prometheus_stem(name: str) -> str:
    """Return a name without dots."""
    return name.replace(".", "_")


def prometheus_unit(unit: str) -> str:
    """Return the end of a metric's name: empty for a unit in braces."""
    return _PROMETHEUS_UNITS.get(unit, "")


def counter(name: str, unit: str, description: str, *attributes: Attribute) -> Metric:
    """Define a sum that only grows."""
    return Metric(Kind.COUNTER, name, unit, description, attributes)


def gauge(name: str, unit: str, description: str, *attributes: Attribute, prometheus_stem: str = "") -> Metric:
    """Define a value at the moment of the export."""
    return Metric(Kind.GAUGE, name, unit, description, attributes, prometheus_stem=prometheus_stem)


def histogram(name: str, unit: str, description: str, *attributes: Attribute, boundaries: tuple[float, ...]) -> Metric:
    """Define values that are counted in buckets."""
    return Metric(Kind.HISTOGRAM, name, unit, description, attributes, boundaries)
