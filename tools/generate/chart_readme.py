"""The chart's README, from the comments of values.yaml."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.generate.chart_alerts import alerts_table
from tools.generate.chart_schema import SET_BY_THE_CHART
from tools.generate.tables import GENERATED, table


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One key of values.yaml: its path, the comment above it, its default, and the keys below it."""

    path: str
    comment: str
    default: str
    children: tuple[Value, ...]


class Undescribed(Exception):
    """A key of values.yaml has no comment above it."""


def readme(chart: Path) -> str:
    """Return the page.

    Raises: Undescribed.
    """
    values = read_values((chart / "values.yaml").read_text())
    alone = [value for value in values if not value.children]
    parts = [
        Path(__file__).with_name("chart_head.md").read_text().strip(),
        "## Values",
        _table(alone),
        "### profile\n\nWhat each profile gives to values that are null:",
        _profiles(yaml.safe_load((chart / "profiles.yaml").read_text())),
        *(part for value in values if value.children for part in _section(value)),
        "## Alerts\n\nWhat each alert has if `alerts.rules` says nothing else:",
        alerts_table(chart),
    ]
    return "\n\n".join((GENERATED, *parts)) + "\n"


def read_values(text: str) -> tuple[Value, ...]:
    """Return the keys of a values.yaml in its order.

    Raises: Undescribed.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return tuple(_read(root, "", text.splitlines()))


def _read(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Value]:
    for key, below in node.value:
        path, comment = f"{prefix}{key.value}", _comment_above(key, lines)
        if not comment:
            raise Undescribed(f"values.yaml:{key.start_mark.line + 1}: {path} has no comment above it")
        # A map without comments on its keys is one value, such as a security context.
        nested = isinstance(below, yaml.MappingNode) and any(_comment_above(inner, lines) for inner, _ in below.value)
        children = tuple(_read(below, f"{path}.", lines)) if nested else ()
        yield Value(path=path, comment=comment, default=_default(below), children=children)


def _comment_above(key: yaml.Node, lines: list[str]) -> str:
    above = itertools.takewhile(lambda line: line.startswith("#"), map(str.strip, lines[key.start_mark.line - 1 :: -1]))
    return " ".join(reversed([line.removeprefix("#").strip() for line in above])) if key.start_mark.line else ""


def _default(node: yaml.Node) -> str:
    value = yaml.safe_load(yaml.serialize(node, Dumper=yaml.SafeDumper))
    return json.dumps(value, ensure_ascii=False)


def _section(value: Value) -> tuple[str, ...]:
    text = value.comment
    if value.path == "settings":
        owned = ", ".join(f"`{name}` ({by})" for name, by in SET_BY_THE_CHART.items())
        text = f"{text}\n\nThe chart sets these itself, from the values in brackets: {owned}."
    return f"### {value.path}", text, _table(list(_leaves(value)))


def _leaves(value: Value) -> Iterator[Value]:
    """Yield the keys below a value that have no keys below them."""
    for child in value.children:
        if child.children:
            yield from _leaves(child)
        else:
            yield child


def _profiles(profiles: Mapping[str, Any]) -> str:
    """Return a table with a row for each value and a column for each profile."""
    columns = [dict(_flat(profile)) for profile in profiles.values()]
    rows = ((f"`{path}`", *(f"`{json.dumps(column[path])}`" for column in columns)) for path in columns[0])
    return table(("value", *profiles), rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _table(values: tuple[Value, ...] | list[Value]) -> str:
    return table(
        ("value", "default", "meaning"),
        ((f"`{value.path}`", f"`{value.default}`", value.comment) for value in values),
    )
