"""The dashboard: made from its description, asks for what is there, and Prometheus has an answer to all of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import combinations, count
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from kvdepot import AsyncDepotClient, Credentials, DepotError, allocation_record
from telemetry.events import ServerDraining
from tests.conftest import StartServer
from tests.e2e.access.calling import write_tenants
from tests.e2e.engines import SMALL, Site, attach, prompt, site
from tests.e2e.prometheus import needs_prometheus, prometheus
from tests.e2e.scraping import Failing, measured, work
from tests.fakes.authority import Authority
from tests.helm.queries import faults

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "helm/kvdepot/dashboards/kvdepot.json"
DASHBOARD = json.loads(FILE.read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
CHUNK_BYTES = 3_072
PATIENCE_ROUNDS = 60


def queries() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each query of a panel, with the panel's title."""
    return ((panel["title"], target) for panel in PANELS for target in panel["targets"])


def asked(query: str, window: str) -> str:
    """As Grafana asks with everything chosen."""
    query = query.replace("$__rate_interval", window)
    for name in VARIABLES:
        query = query.replace(f'"${name}"', '".*"')
    assert "$" not in query, query
    return query


def test_every_metric_and_label_that_it_asks_for_is_there() -> None:
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
        asks = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[name]["query"])
        assert asks is not None
        assert asks[2] == label
        assert faults(asked(asks[1], "5m")) == []
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


def test_a_panel_says_what_it_shows_in_which_unit_and_asks_the_data_source_that_is_chosen() -> None:
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


async def day(depot: Site, number: int) -> None:
    """Some of everything that can happen in a depot, in an L1 of two chunks."""
    assert depot.server.bus is not None
    engine = await depot.attach(model_name="llama")
    for seed in (1, 2, 1):
        await work(engine, f"s{seed}", 40, seed)
        await engine.end_session(f"s{seed}")
    await engine.store("t", prompt(32, 3), engine.kv(32, 3))
    lease = (await engine.lookup("t", prompt(32, 3))).lease
    await engine.store("t", prompt(32, 4), engine.kv(32, 4))  # is refused
    await engine.attachment.release_lease(lease)
    with pytest.raises(DepotError, match="session_id"):
        await engine.store("", prompt(32, 4), engine.kv(32, 4))
    with pytest.raises(Exception, match="no rank of instance 'nobody' is attached"):
        await depot.client.lookup("nobody", "s", prompt(16))
    for session, tokens in (("a", [1, 2]), ("b", [1, 2]), ("c", [3, number])):
        record = [allocation_record(f"{session}{number}", block_ids=[0], token_ids=tokens)]
        await depot.client.report_block_allocation("reporting", "llama", 2, record)
        await depot.client.end_session("reporting", f"{session}{number}")
    while not depot.server.bus.stats().num_dropped_by_type:
        depot.server.bus.publish(ServerDraining())
    await engine.attachment.close()


async def tenants_day(client: AsyncDepotClient, stranger: AsyncDepotClient, number: int) -> None:
    """Some of what can happen where there are tenants, each of which may attach once."""
    engine = await attach(client, SMALL, instance_id=f"engine-{number}")
    await work(engine, "s", 40, seed=number)
    with pytest.raises(DepotError, match="1 streams of the tenant are open"):
        await attach(client, SMALL, instance_id=f"one-more-{number}")
    with pytest.raises(DepotError, match="token"):
        await stranger.get_status()
    await engine.close()


@needs_prometheus
async def test_every_query_has_an_answer_after_some_work(start_server: StartServer, tmp_path: Path) -> None:
    flags = measured(l1_size=2 * CHUNK_BYTES, l0_sample_rate=1.0, event_queue_size=1_000)
    server = await start_server(**flags)
    server.bus.subscribe(Failing())
    authority = Authority()
    cert, key = authority.issue().write(tmp_path, "depot")
    tenants = write_tenants(tmp_path / "tenants.yaml", {"name": "red", "token": "t", "limits": {"max_attachments": 1}})
    shared = await start_server(**measured(tenants=tenants, tls_cert=cert, tls_key=key))
    red, nobody = (Credentials(token=token, ca_file=authority.write(tmp_path)) for token in ("t", "wrong"))
    unanswered = {(title, asked(target["expr"], "10s")) for title, target in queries()}
    async with (
        site(server) as depot,
        AsyncDepotClient(shared.addresses[0], credentials=red) as tenant,
        AsyncDepotClient(shared.addresses[0], credentials=nobody) as stranger,
        prometheus(tmp_path, server.prometheus_address, shared.prometheus_address) as scraping,
    ):
        for number in count(4):
            await day(depot, number)
            await tenants_day(tenant, stranger, number)
            for title, query in list(unanswered):
                if any(math.isfinite(value) for _, value in await scraping.query(query)):
                    unanswered.remove((title, query))
            if not unanswered or number > PATIENCE_ROUNDS:
                break
    assert unanswered == set()
