"""PromQL compared with the metric definitions that docs/metrics.md is made from: names, labels, values of labels.

To Prometheus, a query with an unknown name is no error: its answer is always empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

import grpc
import promql_parser
from promql_parser import AggregateExpr, BinaryExpr, Expr, Matcher, MatchOp, VectorSelector

from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from telemetry.metrics.definitions import METRICS
from telemetry.metrics.metric import Attribute, Kind, Metric

TARGET_LABELS = {"job", "instance", "namespace", "pod"}
"""What Prometheus adds to each series; the last two on Kubernetes."""

_OF_A_HISTOGRAM = ("_bucket", "_count", "_sum")
_BUCKET_END = "le"
_METHODS = tuple(
    f"{service.full_name}/{method.name}"
    for module in (admin_pb2, cache_pb2, observability_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
_VALUES = {"rpc.method": _METHODS, "rpc.response.status_code": tuple(status.name for status in grpc.StatusCode)}


def _series() -> dict[str, Metric]:
    """Return the names of series that a depot has, with the metric that each belongs to."""
    found = {}
    for metric in METRICS:
        suffixes = _OF_A_HISTOGRAM if metric.kind is Kind.HISTOGRAM else ("",)
        found.update({metric.prometheus_name + suffix: metric for suffix in suffixes})
    return found


SERIES = _series()


def faults(query: str, recorded: Iterable[str] = ()) -> list[str]:
    """Return the faults of a query. The names in ``recorded`` are made by rules.

    Raises: ValueError.
    """
    expression = promql_parser.parse(query)
    known = {*recorded, "up"}
    found = [
        fault for selector in selectors(expression) if selector.name not in known for fault in _faults_of(selector)
    ]
    for node in _nodes(expression):
        labels = _grouped_by(node)
        found += [f"no series has {label}" for label in labels - _labels_within(node) - TARGET_LABELS]
    return found


def selectors(expression: Expr) -> Iterator[VectorSelector]:
    """Return the selectors of a query."""
    return (node for node in _nodes(expression) if isinstance(node, VectorSelector))


def _nodes(expression: Expr) -> list[Expr]:
    nodes: list[Expr] = []
    promql_parser.walk(expression, nodes.append)  # None goes on
    return nodes


def _faults_of(selector: VectorSelector) -> Iterator[str]:
    metric = SERIES.get(selector.name or "")
    if metric is None:
        yield f"there is no metric {selector.name}"
        return
    attributes = {_label(attribute): attribute for attribute in metric.attributes}
    for matcher in _matchers(selector):
        attribute = attributes.get(matcher.name)
        if matcher.name == _BUCKET_END and selector.name == f"{metric.prometheus_name}_bucket":
            values = tuple(chain.from_iterable((repr(float(end)), f"{end:g}") for end in metric.boundaries))
        elif attribute is not None:
            values = _VALUES.get(attribute.name, attribute.values)
        elif matcher.name in TARGET_LABELS:
            continue
        else:
            yield f"{selector.name} has no {matcher.name}"
            continue
        for wanted in _alternatives(matcher):
            if values and not any(re.fullmatch(wanted, value) for value in values):
                yield f"{matcher.name} of {selector.name} is never {wanted}"


def _matchers(selector: VectorSelector) -> list[Matcher]:
    return list(selector.matchers.matchers)


def _alternatives(matcher: Matcher) -> list[str]:
    """Return patterns that should each match some value. A variable of Grafana's matches anything."""
    if matcher.value.startswith("$"):
        return []
    if matcher.op in (MatchOp.Equal, MatchOp.NotEqual):
        return [re.escape(matcher.value)]
    return matcher.value.split("|")


def _grouped_by(node: Expr) -> set[str]:
    if isinstance(node, AggregateExpr) and node.modifier is not None:
        return set(node.modifier.labels)
    if isinstance(node, BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
        return set(node.modifier.matching.labels)
    return set()


def _labels_within(node: Expr) -> set[str]:
    labels = set()
    for selector in selectors(node):
        name = selector.name or ""
        metric = SERIES.get(name)
        labels |= {_label(attribute) for attribute in metric.attributes} if metric is not None else set()
        labels |= {_BUCKET_END} if name.endswith("_bucket") else set()
    return labels


def _label(attribute: Attribute) -> str:
    return attribute.name.replace(".", "_")
