"""The page of metrics: complete, whole at any moment, and not there where it is not wanted."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.error
from enum import StrEnum

import numpy as np
import pytest

from kvdepot import DepotError, allocation_record
from service.server import CannotListen
from telemetry.kinds import LeaseEnd, MissReason, OperationKind, Outcome, RefusalReason, SessionEnd
from telemetry.metrics import attributes, definitions
from telemetry.metrics.definitions import METRICS
from telemetry.metrics.metric import Attribute
from tests.e2e.conftest import Open
from tests.e2e.engines import Site, prompt
from tests.e2e.scraping import Failing, Page, get, measured, scrape, work
from tests.e2e.servers import StartServer, running_server
from tests.fakes.waiting import eventually

SLOT_BYTES = 4_096
OPERATION = "kvdepot_operations_total"
OF_TENANTS = ("kvdepot.tenant.", "kvdepot.access.", "kvdepot.files.", "kvdepot.tls.")
OF_TIERS = "kvdepot.tier."
OF_RECORDINGS = "kvdepot.recording."
OF_KV_EVENTS = "kvdepot.kv_events."
OF_PROCESSES = definitions.LOG_LINES_DROPPED.name
OF_ESTIMATES = ("kvdepot.sizing.hit", "kvdepot.sizing.prefill", "kvdepot.sizing.depot_hit_ratio")
ELSEWHERE = {
    metric.prometheus_name
    for metric in definitions.METRICS
    if metric.name.startswith((*OF_TENANTS, *OF_ESTIMATES, OF_TIERS, OF_RECORDINGS, OF_KV_EVENTS, OF_PROCESSES))
}
"""Metrics that a depot without tenants and TLS lacks: see tests/e2e/access; nor has one without tiers behind L1: see
test_tier_metrics.py; nor one that records no requests: see test_recording.py; nor one without KV events: see
tests/e2e/kv_events; nor one that has not seen enough for an
estimate: see test_hit_curve.py; nor one that is no process of its own: see tests/e2e/test_hangs.py."""


@pytest.fixture
async def depot(open_site: Open) -> Site:
    return await open_site(**measured())


async def test_every_metric_of_the_catalogue_is_exported_and_no_other(open_site: Open) -> None:
    depot = await open_site(**measured(l1_size=2 * SLOT_BYTES, l0_sample_rate=1.0, tenant_max_pinned=0.5))
    assert depot.server.bus is not None
    depot.server.bus.subscribe(Failing())
    engine = await depot.attach(prefill_tokens_per_second=1_000.0)
    for seed in (1, 2, 1):
        await work(engine, f"s{seed}", 40, seed)
        await engine.end_session(f"s{seed}")
    await engine.store("t", prompt(32, 3), engine.kv(32, 3))
    lease = (await engine.lookup("t", prompt(32, 3))).lease
    await engine.store("t", prompt(32, 4), engine.kv(32, 4))
    await engine.attachment.release_lease(lease)
    pinned = await depot.client.pin_prefix(prompt(16, 3), 60, model_name="model")
    await depot.client.unpin_prefix(pinned.pin)
    await depot.client.clear_cache()
    gone = await depot.attach()
    await gone.close()
    await eventually(lambda: len(depot.depot.instances) == 1)
    for session_id, tokens in (("a", [1, 2]), ("b", [1, 2]), ("c", [3, 4])):
        record = [allocation_record(session_id, block_ids=[0], token_ids=tokens)]
        await depot.client.report_block_allocation("e", "m", 2, record)
        await depot.client.end_session("e", session_id)
    with pytest.raises(DepotError, match="SESSION_NOT_FOUND"):
        await depot.client.end_session("e", "none")
    await asyncio.sleep(0.15)  # the loop's lag is noted ten times a second
    page = await scrape(depot.server)
    assert page.names - {"target"} - {"target_info"} == {metric.prometheus_name for metric in METRICS} - ELSEWHERE


async def test_a_page_is_whole_while_others_scrape_and_the_depot_works(depot: Site) -> None:
    engine = await depot.attach()
    stop = asyncio.Event()

    async def keep_working() -> None:
        seed = 0
        while not stop.is_set():
            seed += 1
            await work(engine, f"s{seed % 50}", 32, seed)

    async def keep_scraping() -> list[Page]:
        address = depot.server.prometheus_address
        assert address is not None
        return [Page(await asyncio.to_thread(get, address)) for _ in range(10)]

    worker = asyncio.create_task(keep_working())
    pages = await asyncio.gather(*(keep_scraping() for _ in range(4)))
    stop.set()
    await worker
    always_there = {each.prometheus_name for each in definitions.METRICS if not each.attributes and not each.boundaries}
    always_there -= ELSEWHERE
    for scraped in pages:
        counts = [page.sum(OPERATION) for page in scraped]
        assert counts == sorted(counts), "a counter went back"
        for page in scraped:
            assert page.names >= always_there


@pytest.mark.parametrize("path", ["/metrics", "/metrics?name[]=kvdepot_l1_used_bytes"])
async def test_the_page_is_whole_with_any_query(depot: Site, path: str) -> None:
    assert depot.server.prometheus_address is not None
    page = Page(await asyncio.to_thread(get, depot.server.prometheus_address, path))
    assert page.value("kvdepot_l1_capacity_bytes") == 16 << 20


async def test_a_scrape_while_the_loop_is_blocked_gets_the_last_snapshot(depot: Site) -> None:
    engine = await depot.attach()
    await engine.lookup("s", prompt(16))
    known = await scrape(depot.server)
    assert depot.server.prometheus_address is not None
    answer = asyncio.get_running_loop().run_in_executor(None, get, depot.server.prometheus_address)
    time.sleep(1.5)  # noqa: ASYNC251 - nothing else runs meanwhile
    page = Page(await answer)
    assert page.sum(OPERATION) == known.sum(OPERATION) == 1


# Where it is not wanted, or not possible


@pytest.mark.parametrize("flag", ["disable_metrics", "disable_observability"])
async def test_without_metrics_nothing_is_measured_nor_served(start_server: StartServer, flag: str) -> None:
    server = await start_server(**measured(**{flag: True}))
    assert server.prometheus_address is None
    names = {type(subscriber).__name__ for subscriber in server.bus._delivery.subscribers} if server.bus else set()
    assert not {"MetricsSubscriber", "ChunksSubscriber", "L0Subscriber"} & names


async def test_a_port_that_is_taken_refuses_to_start(start_server: StartServer) -> None:
    server = await start_server(**measured())
    assert server.prometheus_address is not None
    port = server.prometheus_address.rpartition(":")[2]
    with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port}.*taken"):
        async with running_server(measured(prometheus_port=port)):
            pass
    assert Page(await asyncio.to_thread(get, server.prometheus_address)).names


async def test_with_the_server_go_its_page_its_thread_and_its_timer() -> None:
    threads = set(threading.enumerate())
    async with running_server(measured()) as server:
        address = server.prometheus_address
        assert address is not None
        await asyncio.to_thread(get, address)
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(get, address)

    def left() -> set[str]:
        names = {thread.name for thread in set(threading.enumerate()) - threads}
        return {name for name in names if not name.startswith("asyncio_")}

    await eventually(lambda: left() == set())
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert not [timer for timer in timers if "LoopLag" in repr(timer) and not timer.cancelled()]


# The metric definitions


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        (attributes.OPERATION, OperationKind),
        (attributes.OUTCOME, Outcome),
        (attributes.LEASE_END, LeaseEnd),
        (attributes.SESSION_END, SessionEnd),
        (attributes.REFUSAL_REASON, RefusalReason),
    ],
)
def test_attributes_have_the_values_of_the_depots_enumerations(attribute: Attribute, values: type[StrEnum]) -> None:
    assert set(attribute.values) == {str(value) for value in values}


def test_missed_tokens_have_the_reasons_of_misses_and_one_more() -> None:
    assert set(attributes.MISS_REASON.values) == {*map(str, MissReason), "no answer"}


async def test_values_are_those_that_the_catalogue_names(depot: Site) -> None:
    engine = await depot.attach()
    await work(engine, "s", 40, seed=1)
    await engine.end_session("s")
    page = await scrape(depot.server)
    for metric in METRICS:
        for attribute in metric.attributes:
            label = attribute.name.replace(".", "_")
            suffix = "_count" if metric.boundaries else ""
            values = page.labels(metric.prometheus_name + suffix, label)
            assert not attribute.values or values <= set(attribute.values), (metric.name, values)


def test_every_histogram_has_boundaries_that_ascend() -> None:
    for metric in METRICS:
        assert (metric.kind == "histogram") == bool(metric.boundaries)
        assert list(np.unique(metric.boundaries)) == list(metric.boundaries)
