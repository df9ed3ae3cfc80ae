"""The dashboard is made from its description, and its queries name metrics and labels that exist."""

from __future__ import annotations

import re
from itertools import combinations

import promql_parser

from tests.helm.dashboard import DASHBOARD, PANELS, VARIABLES, asked, queries
from tests.helm.queries import faults


def test_every_metric_and_label_that_it_queries_exists() -> None:
    annotations = [(each["name"], each) for each in DASHBOARD["annotations"]["list"]]
    found = {
        (title, fault)
        for title, target in [*queries(), *annotations]
        for fault in faults(asked(target["expr"], "5m"), recorded=["ALERTS"])
    }
    assert found == set()
    assert len(list(queries())) > 60


def test_what_can_be_chosen_is_asked_from_where_the_panels_find_it() -> None:
    assert list(VARIABLES) == ["datasource", "namespace", "job", "instance", "model"]
    labels = {"namespace": "namespace", "job": "job", "instance": "instance", "model": "model_name"}
    for name, label in labels.items():
        query = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[name]["query"])
        assert query is not None
        assert query[2] == label
        assert faults(asked(query[1], "5m")) == []
        assert any(f'{label}=~"${name}"' in target["expr"] for _, target in queries())
        assert VARIABLES[name]["allValue"] == ".*", "where there is no such label, nothing would be shown"


def test_every_query_is_of_the_depots_that_are_chosen() -> None:
    for title, target in queries():
        for selector in promql_selectors(asked(target["expr"], "5m")):
            assert {"job", "namespace", "instance"} <= {matcher.name for matcher in selector.matchers.matchers}, title


def promql_selectors(query: str) -> list[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def test_a_panel_has_a_title_and_a_unit_and_queries_the_chosen_data_source() -> None:
    for panel in PANELS:
        title = panel["title"]
        assert panel["description"].endswith("."), title
        unit = (
            panel["options"]["yAxis"]["unit"]
            if panel["type"] == "heatmap"
            else panel["fieldConfig"]["defaults"]["unit"]
        )
        assert unit in ("short", "percentunit", "s", "bytes", "Bps", "ops", "reqps"), title
        ref_ids = [target["refId"] for target in panel["targets"]]
        assert ref_ids == list("ABCDEF"[: len(ref_ids)]), title
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title


def test_panels_do_not_overlap_and_fill_their_rows() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
    widths: dict[int, int] = {}
    for panel in PANELS:
        widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert set(widths.values()) == {24}


def test_a_legend_names_labels_that_the_query_keeps() -> None:
    for title, target in queries():
        named = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
        kept = [set(labels.split(", ")) for labels in re.findall(r"by \((.+?)\)", target["expr"])] or [set()]
        for labels in kept:
            assert labels - {"le"} == named - {"le"}, title
