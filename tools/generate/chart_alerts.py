"""The chart's alerts: what each one can be given in values.yaml, and what it has by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tools.generate.tables import table

THRESHOLD = re.compile(r"([0-9][0-9.e* ]*) # threshold")
"""A threshold in a rule's expression. templates/_alerts.tpl finds it in the same way."""

_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w|y))+$"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def alerts(chart: Path) -> Iterator[dict[str, Any]]:
    """Yield the rules of alerts in their order."""
    for path in sorted((chart / "rules").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from (rule for rule in group["rules"] if "alert" in rule)


def alert_rules_schema(chart: Path) -> dict[str, Any]:
    """Return the schema of `alerts.rules`: the alerts by name, and a threshold only for those that have one."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {rule["alert"]: _rule_schema(rule) for rule in alerts(chart)},
    }


def alerts_table(chart: Path) -> str:
    """Return a table of the alerts with their defaults."""
    heads = ("alert", "severity", "for", "threshold")
    return table(heads, (_row(rule) for rule in alerts(chart)))


def _rule_schema(rule: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"enabled": {"type": "boolean"}}
    if THRESHOLD.search(rule["expr"]):
        fields["threshold"] = {"type": "number"}
    fields |= {"for": _DURATION, "keep_firing_for": _DURATION, "labels": _TEXTS, "annotations": _TEXTS}
    return {"type": "object", "additionalProperties": False, "properties": fields}


def _row(rule: dict[str, Any]) -> tuple[str, ...]:
    name, found = rule["alert"], THRESHOLD.search(rule["expr"])
    link = f"[{name}](../../{rule['annotations']['runbook_url']})"
    return link, rule["labels"]["severity"], rule.get("for", ""), f"`{found.group(1)}`" if found else ""
