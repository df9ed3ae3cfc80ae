"""The chart's dashboard, built from its rows."""

from __future__ import annotations

import json
from itertools import count

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    VariableHide,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from tools.generate.dashboard.panels import DATASOURCE
from tools.generate.dashboard.queries import selected
from tools.generate.dashboard.rows import ROWS

_OF_JOB = 'job=~"$job", namespace=~"$namespace"'


def dashboard_json() -> str:
    """Return the JSON that Grafana imports."""
    made = (
        dashboard.Dashboard("kvdepot")
        .uid("kvdepot")
        .description("Depots for the KV cache of LLM inference engines: savings, costs and health.")
        .tags(["kvdepot", "llm", "kv-cache"])
        .editable()
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("namespace", "Namespace", "kvdepot_l1_capacity_bytes", "namespace"))
        .with_variable(_variable("job", "Job", 'kvdepot_l1_capacity_bytes{namespace=~"$namespace"}', "job"))
        .with_variable(_variable("instance", "Depot", f"kvdepot_l1_capacity_bytes{{{_OF_JOB}}}", "instance"))
        .with_variable(_variable("model", "Model", f"kvdepot_operations_total{{{_OF_JOB}}}", "model_name"))
        .annotation(_annotation("Alerts", 'ALERTS{alertname=~"Kvdepot.+", alertstate="firing"}', "red"))
        .annotation(
            _annotation("Starts", selected("resets(process_uptime_seconds{DEPOT}[$__rate_interval]) > 0"), "blue")
        )
    )
    ids = count(1)
    for title, panels in ROWS.items():
        made.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            made.with_panel(panel.id(next(ids)))
    built = made.build()
    return json.dumps(built, cls=JSONEncoder, indent=2) + "\n"


def _variable(name: str, label: str, series: str, of: str) -> dashboard.QueryVariable:
    """Return a choice of values of a label. "All" matches a missing label, which occurs outside Kubernetes."""
    everything = VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(f"label_values({series}, {of})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .hide(VariableHide.DONT_HIDE)
        .current(everything)
    )


def _annotation(name: str, query: str, color: str) -> dashboard.AnnotationQuery:
    return dashboard.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True).icon_color(color).expr(query)
