"""Prometheus itself takes the page: promtool finds no fault with it, a server scrapes it and answers queries."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from tests.e2e.conftest import Open
from tests.e2e.prometheus import needs_prometheus, prometheus
from tests.e2e.scraping import measured, scrape, work
from tests.fakes.real_servers import needs
from tests.fakes.waiting import eventually


@needs("promtool")
async def test_promtool_finds_no_fault_with_the_page(open_site: Open) -> None:
    depot = await open_site(**measured())
    engine = await depot.attach()
    await work(engine, "s", 40, seed=1)
    page = await scrape(depot.server)
    checked = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=page.text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@needs_prometheus
async def test_a_prometheus_scrapes_the_depot_and_answers_queries(open_site: Open, tmp_path: Path) -> None:
    depot = await open_site(**measured())
    engine = await depot.attach(model_name="llama")
    await work(engine, "s", 40, seed=1)
    assert depot.server.prometheus_address is not None
    async with prometheus(tmp_path, depot.server.prometheus_address) as scraping:
        query = scraping.query

        async def scraped() -> bool:
            return bool(await query('kvdepot_operations_total{operation="retrieve"}'))

        await eventually(scraped, within_seconds=30)
        [(up, is_up)] = await query("up")
        assert (up["job"], is_up) == ("kvdepot", 1)
        assert [value for _, value in await query("sum(kvdepot_operations_total)")] == [3]
        [(labels, tokens)] = await query("kvdepot_lookup_matched_tokens_total")
        assert (labels["model_name"], labels["tier"], tokens) == ("llama", "l1", 32)
        median = 'histogram_quantile(0.5, sum by (le) (kvdepot_operation_duration_seconds_bucket{operation="store"}))'
        [(_, seconds)] = await query(median)
        assert 0 < seconds < 30
        [(_, rpcs)] = await query('sum(rpc_server_call_duration_seconds_count{rpc_method=~".*/Lookup"})')
        assert rpcs == 1
