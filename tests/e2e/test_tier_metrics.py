"""The metrics of the tiers behind L1: complete, known values, and no fault that promtool finds."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from enum import StrEnum
from typing import Any

import pytest

from service.server import Server
from service.tiers.address.address import KINDS
from service.tiers.io_worker.job import JobEnd
from service.tiers.io_worker.messages import WriteEnd
from service.tiers.load import LoadEnd
from service.tiers.snapshot import TierState
from service.tiers.store import Role
from telemetry.events import IoWorkerEnded, TierAsked, TierRead, TierWritten
from telemetry.metrics import tier_definitions as definitions
from telemetry.metrics.metric import Attribute
from tests.e2e.scraping import Page, measured, scrape
from tests.e2e.servers import StartServer
from tests.fakes.real_servers import needs
from tests.fakes.shown_tier import DISK, VALKEY, ShownTier, disk_and_valkey


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    """A server with a disk that works and a Valkey that does not."""
    started: Server = await start_server(**measured(), open_tiers=disk_and_valkey)
    return started


async def page_after_events(server: Server) -> Page:
    """Return the page after each kind of event of the disk."""
    about: dict[str, Any] = {"tier": "disk", "model_name": "m", "key": b"k", "num_bytes": 1 << 21}
    took: dict[str, Any] = {"wait_seconds": 0.004, "duration_seconds": 0.03}
    assert server.bus is not None
    for event in (
        TierAsked(tier="disk", num_chunks=4, num_found=2, duration_seconds=0.0004, outcome="ok"),
        TierRead(**about, **took, outcome="arrived"),
        TierRead(**about, **took, outcome="unwanted"),
        TierWritten(**about, **took, outcome="full"),
        IoWorkerEnded(tier="disk", role="read", reason="deadline", verb="read", num_parts=3),
    ):
        server.bus.publish(event)
    return await scrape(server)


async def test_every_metric_of_tiers_is_exported(server: Server) -> None:
    page = await page_after_events(server)
    names = {name for name in page.names if name.startswith("kvdepot_tier_")}
    assert names == {metric.prometheus_name for metric in definitions.TIER_METRICS}


async def test_counts_are_those_of_the_tier(server: Server) -> None:
    page = await scrape(server)
    assert page.value("kvdepot_tier_chunks_read_total", tier="disk", outcome="damaged") == 3
    assert page.value("kvdepot_tier_chunks_written_total", tier="disk", outcome="full") == 4
    assert page.value("kvdepot_tier_chunks_dropped_total", tier="disk", reason="budget") == 20
    assert page.value("kvdepot_tier_chunks_asked_total", tier="shared") == 10
    assert page.value("kvdepot_tier_io_bytes_total", tier="disk", operation="read") == 900 << 21
    assert page.value("kvdepot_tier_throughput_bytes_per_second", tier="disk", operation="write") == 890e6
    assert page.value("kvdepot_tier_queue_size_bytes", tier="disk") == 12 << 20
    assert page.value("kvdepot_tier_io_workers", tier="shared") == 3


async def test_a_tier_is_in_one_state(server: Server) -> None:
    name = "kvdepot_tier_state"
    page = await scrape(server)
    assert [page.value(name, tier="shared", kind="valkey", state=state) for state in TierState] == [0, 0, 1, 0]
    _, shared = server.depots.tiers
    assert isinstance(shared, ShownTier)
    shared.shown = replace(VALKEY, state=TierState.AVAILABLE)
    page = await scrape(server)
    assert [page.value(name, tier="shared", kind="valkey", state=state) for state in TierState] == [0, 1, 0, 0]


async def test_what_only_the_store_knows_has_no_value(server: Server) -> None:
    page = await scrape(server)
    for name in ("kvdepot_tier_used_bytes", "kvdepot_tier_capacity_bytes", "kvdepot_tier_chunks_resident"):
        assert page.labels(name, "tier") == {"disk"}
    assert page.labels("kvdepot_tier_throughput_bytes_per_second", "tier") == {"disk"}


async def test_an_empty_tier_has_0_bytes(server: Server) -> None:
    disk, _ = server.depots.tiers
    assert isinstance(disk, ShownTier)
    disk.shown = replace(DISK, used_bytes=0, num_chunks=0)
    page = await scrape(server)
    assert page.value("kvdepot_tier_used_bytes", tier="disk") == 0
    assert page.value("kvdepot_tier_chunks_resident", tier="disk") == 0


async def test_a_count_is_there_before_the_first_one_so_that_its_increase_shows(server: Server) -> None:
    page = await scrape(server)
    assert page.value("kvdepot_tier_chunks_read_total", tier="shared", outcome="damaged") == 0
    assert page.value("kvdepot_tier_chunks_dropped_total", tier="shared", reason="tier unavailable") == 0


async def test_times_of_chunks_that_no_io_worker_had_do_not_count(server: Server) -> None:
    page = await page_after_events(server)
    assert page.sum("kvdepot_tier_read_duration_seconds_count") == 1
    assert page.value("kvdepot_tier_read_duration_seconds_bucket", tier="disk", outcome="arrived", le="0.025") == 0
    assert page.value("kvdepot_tier_read_duration_seconds_bucket", tier="disk", outcome="arrived", le="0.05") == 1
    assert page.value("kvdepot_tier_wait_duration_seconds_count", tier="disk", operation="read") == 1
    assert page.value("kvdepot_tier_wait_duration_seconds_count", tier="disk", operation="write") == 1
    assert page.value("kvdepot_tier_ask_duration_seconds_sum", tier="disk", outcome="ok") == pytest.approx(0.0004)
    ended = page.value("kvdepot_tier_io_workers_ended_total", tier="disk", role="read", reason="deadline")
    assert ended == 1


@needs("promtool")
async def test_promtool_finds_no_fault_with_the_page(server: Server) -> None:
    page = await page_after_events(server)
    checked = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=page.text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        (definitions.READ_OUTCOME, LoadEnd),
        (definitions.WRITE_OUTCOME, WriteEnd),
        (definitions.STATE, TierState),
        (definitions.ROLE, Role),
    ],
)
def test_attributes_have_the_values_of_the_tiers_enumerations(attribute: Attribute, values: type[StrEnum]) -> None:
    assert set(attribute.values) == {str(value) for value in values}


def test_an_io_worker_ends_as_its_last_job_did() -> None:
    assert set(definitions.END_REASON.values) == {end.value for end in JobEnd if end.is_death}


def test_a_kind_is_how_an_address_begins() -> None:
    assert definitions.KIND.values == KINDS
