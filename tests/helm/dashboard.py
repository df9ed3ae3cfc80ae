"""The dashboard's file: its panels, its variables, and its queries as Grafana sends them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "helm/kvdepot/dashboards/kvdepot.json"
DASHBOARD = json.loads(FILE.read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}


def queries() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return each query of a panel, with the panel's title."""
    return ((panel["title"], target) for panel in PANELS for target in panel["targets"])


def asked(query: str, window: str) -> str:
    """Return a query as Grafana sends it with everything chosen."""
    query = query.replace("$__rate_interval", window)
    for name in VARIABLES:
        query = query.replace(f'"${name}"', '".*"')
    assert "$" not in query, query
    return query
