"""Metrics of a real server are those of the work that it did."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from kvdepot import DepotError, allocation_record
from kvdepot.version import __version__
from telemetry.events import LeaseEnded
from telemetry.kinds import SessionEnd
from tests.e2e.conftest import Open
from tests.e2e.engines import Engine, InlineStore, Site, prompt, refused
from tests.e2e.scraping import Failing, Page, measured, scrape, work
from tests.fakes.waiting import eventually

CHUNK_BYTES = 3_072
SLOT_BYTES = 4_096
OPERATION = "kvdepot_operations_total"


@pytest.fixture
async def depot(open_site: Open) -> Site:
    return await open_site(**measured())


# What is counted


async def test_operations_are_counted_with_their_tokens_and_bytes(depot: Site) -> None:
    engine = await depot.attach(model_name="llama")
    await engine.lookup("s", prompt(40))
    await work(engine, "s", 40, seed=1)
    await engine.lookup("s", prompt(70))
    with pytest.raises(DepotError):
        await engine.retrieve("s", (await engine.lookup("s", prompt(16))).lease.lease_id + "x", 16)
    page = await scrape(depot.server)

    counted = {
        (operation, outcome): page.value(OPERATION, operation=operation, outcome=outcome, model_name="llama")
        for operation, outcome in (("lookup", "miss"), ("lookup", "ok"), ("lookup", "partial"))
    }
    assert counted == {("lookup", "miss"): 1, ("lookup", "ok"): 2, ("lookup", "partial"): 1}
    for operation in ("store", "retrieve"):
        assert page.value(OPERATION, operation=operation, outcome="ok", model_name="llama") == 1
        assert (
            page.value("kvdepot_operation_io_bytes_total", operation=operation, model_name="llama") == 2 * CHUNK_BYTES
        )
        assert page.value("kvdepot_transfer_io_bytes_total", direction=operation, backend="host") == 2 * CHUNK_BYTES
        assert (
            page.value("kvdepot_transfer_throughput_bytes_per_second_count", direction=operation, backend="host") == 1
        )
        assert (
            page.value("kvdepot_transfer_duration_seconds_count", direction=operation, backend="host", outcome="ok")
            == 1
        )
    assert page.sum("kvdepot_operation_duration_seconds_count") == page.sum(OPERATION) == 6
    assert 0 < page.sum("kvdepot_operation_duration_seconds_sum") < 10

    assert page.value("kvdepot_lookup_tokens_total", model_name="llama") == 40 + 40 + 70 + 16
    assert page.value("kvdepot_lookup_matched_tokens_total", model_name="llama", tier="l1") == 32 + 32 + 16
    missed = {
        reason: page.value("kvdepot_lookup_missed_tokens_total", model_name="llama", reason=reason)
        for reason in page.labels("kvdepot_lookup_missed_tokens_total", "reason")
    }
    assert missed == {"unknown identity": 40, "shorter than chunk": 8, "never stored": 38}
    assert page.value("kvdepot_store_tokens_total", model_name="llama", result="stored") == 32
    assert page.value("kvdepot_store_tokens_total", model_name="llama", result="tail") == 8
    assert page.value("kvdepot_retrieve_tokens_total", model_name="llama", tier="l1") == 32


async def test_models_have_separate_series(depot: Site) -> None:
    first, second = await depot.attach(model_name="llama"), await depot.attach(model_name="qwen")
    await work(first, "s", 32, seed=1)
    for seed in (1, 2):
        await work(second, "s", 16, seed)
    page = await scrape(depot.server)
    tokens = {
        model: page.value("kvdepot_store_tokens_total", result="stored", model_name=model)
        for model in ("llama", "qwen")
    }
    assert tokens == {"llama": 32, "qwen": 32}
    assert page.sum(OPERATION, model_name="llama") == 3
    assert page.sum(OPERATION, model_name="qwen") == 6


async def test_l1_gauges_match_its_contents(depot: Site) -> None:
    engine = await depot.attach()
    await engine.store("s", prompt(48), engine.kv(48, 1))
    lease = (await engine.lookup("s", prompt(32))).lease
    page = await scrape(depot.server)
    assert page.value("kvdepot_l1_used_bytes") == 3 * SLOT_BYTES
    assert page.value("kvdepot_l1_capacity_bytes") == 16 << 20
    assert page.value("kvdepot_l1_slots", state="used") == 3
    assert page.sum("kvdepot_l1_slots") == 1024
    assert page.value("kvdepot_l1_chunks_resident") == 3
    assert page.value("kvdepot_l1_chunks_protected") == 2
    assert page.value("kvdepot_l1_chunks_stored_total", model_name="model") == 3
    assert page.value("kvdepot_leases_live") == 1

    await engine.attachment.release_lease(lease)
    await depot.client.clear_cache()
    page = await scrape(depot.server)
    assert page.value("kvdepot_l1_used_bytes") == page.value("kvdepot_leases_live") == 0
    assert page.value("kvdepot_leases_ended_total", reason="released") == 1
    assert page.value("kvdepot_l1_chunks_cleared_total") == 3


async def test_attachments_and_their_ends_are_counted(depot: Site) -> None:
    stays = await depot.attach(instance_id="stays", model_name="m")
    await stays.lookup("a", prompt(16))
    await stays.lookup("b", prompt(16))
    await stays.end_session("b")
    closes = await depot.attach(instance_id="closes", model_name="m")
    await closes.close()
    dies = await depot.attach(instance_id="dies", model_name="m")
    await dies.lookup("c", prompt(16))
    await dies.die()
    await eventually(lambda: len(depot.depot.instances) == 1)
    page = await scrape(depot.server)
    assert page.value("kvdepot_attachments_live") == page.value("kvdepot_instances_live") == 1
    assert page.value("kvdepot_attachments_mapped_bytes") == sum(each.nbytes for each in _memory(stays))
    assert page.value("kvdepot_attachments_started_total", model_name="m", backend="host") == 3
    assert page.value("kvdepot_attachments_ended_total", model_name="m", reason="closed") == 1
    assert page.value("kvdepot_attachments_ended_total", model_name="m", reason="lost") == 1
    assert page.value("kvdepot_sessions_live") == 1
    assert page.value("kvdepot_sessions_started_total", model_name="m") == 3
    assert page.value("kvdepot_sessions_ended_total", model_name="m", reason="requested") == 1
    assert page.value("kvdepot_sessions_ended_total", model_name="m", reason="instance detached") == 1
    assert page.value("kvdepot_rpcs_running", kind="stream") == 1


def _memory(engine: Engine) -> list[Any]:
    return [buffer.array for buffer in engine.buffer.buffers]


async def test_refusals_and_lifetimes_of_chunks_are_measured(open_site: Open) -> None:
    depot = await open_site(**measured(l1_size=2 * SLOT_BYTES))
    engine = await depot.attach(model_name="m")
    await engine.store("s", prompt(32, 1), engine.kv(32, 1))
    await engine.store("s", prompt(32, 2), engine.kv(32, 2))  # evicts both
    await engine.store("s", prompt(32, 1), engine.kv(32, 1))  # wanted again
    lease = (await engine.lookup("s", prompt(32, 1))).lease
    await engine.store("s", prompt(32, 3), engine.kv(32, 3))  # finds no slot
    await engine.attachment.release_lease(lease)
    page = await scrape(depot.server)
    assert page.value("kvdepot_l1_chunks_evicted_total") == 4
    assert page.value("kvdepot_l1_chunks_refused_total") == 2
    assert page.value("kvdepot_store_refusals_total", model_name="m", reason="no slot") == 1
    assert page.value("kvdepot_store_tokens_total", model_name="m", result="refused") == 32
    chunk = "kvdepot_l1_chunk"
    for name, num_chunks in (("lifetime", 4), ("idle_before_evict", 4), ("reuse_after_evict", 2), ("reuse_gap", 2)):
        assert page.value(f"{chunk}_{name}_seconds_count", model_name="m", tier="l1") == num_chunks, name
        assert 0 <= page.sum(f"{chunk}_{name}_seconds_sum") < 20


async def test_the_engines_blocks_are_measured_by_instance(depot: Site) -> None:
    report = depot.client.report_block_allocation
    await report("e", "m", 4, [allocation_record("a", block_ids=[0, 1, 2], token_ids=range(12))])
    await depot.client.report_block_allocation("f", "m", 4, [allocation_record("a", block_ids=[0], token_ids=range(4))])
    await report("e", "m", 4, [allocation_record("b", token_ids=range(8), reused_block_ids=[0, 1])])
    page = await scrape(depot.server)
    assert page.value("kvdepot_l0_blocks", instance_id="e", model_name="m", state="owned") == 3
    assert page.value("kvdepot_l0_blocks", instance_id="f", model_name="m", state="owned") == 1
    assert page.value("kvdepot_l0_block_allocations_total", instance_id="e", model_name="m") == 3
    assert page.value("kvdepot_l0_block_shares_total", instance_id="e", model_name="m") == 2
    end_sessions(depot)


async def test_calls_are_measured_by_method_and_status(depot: Site) -> None:
    cache = "kvdepot.v1.CacheService/"
    engine = await depot.attach()
    await engine.lookup("s", prompt(16))
    await engine.store("s", prompt(16), engine.kv(16, 1))
    for _ in range(2):
        with pytest.raises(DepotError):
            await depot.client.lookup("unknown", "s", prompt(16))
    async for _ in engine.attachment.retrieve_inline("s", (await engine.lookup("s", prompt(16))).lease):
        pass
    gone = await depot.attach()  # a stream that is measured by other means
    await gone.close()  # by a call
    await eventually(lambda: len(depot.depot.instances) == 1)
    async with grpc.aio.insecure_channel(depot.server.addresses[0]) as channel:
        for method in (cache + "NoSuch", "no.such.Service/Lookup"):
            with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                call: Any = channel.unary_unary("/" + method)
                await call(b"")
    page = await scrape(depot.server)
    name = "rpc_server_call_duration_seconds_count"

    assert rpcs(page, "Lookup", "OK") == 2
    assert rpcs(page, "Lookup", "NOT_FOUND") == 2
    assert rpcs(page, "Store", "OK") == 1
    assert rpcs(page, "RetrieveInline", "OK") == 1
    assert rpcs(page, "DetachInstance", "OK") == 1
    assert {method.removeprefix(cache) for method in page.labels(name, "rpc_method")} == {
        "Lookup",
        "Store",
        "RetrieveInline",
        "DetachInstance",
    }


async def test_a_call_that_is_cut_off_has_a_status_of_its_own(depot: Site) -> None:
    engine = await depot.attach()
    store = InlineStore(depot.stub)
    await store.header(engine, "s", prompt(16))
    await store.data(b"x")
    await eventually(lambda: depot.num_being_stored() == 1)  # what both look for is being stored
    with refused("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"):
        await engine.lookup("s", prompt(16), max_wait_seconds=30.0, timeout_seconds=0.2)
    cancelled = asyncio.create_task(engine.lookup("s", prompt(16), max_wait_seconds=30.0))
    await eventually(lambda: len(depot.depot.sessions.require("engine-1", "s").operations) == 3)
    cancelled.cancel()
    # The store ends when the lookup has: one that finds its chunk given up is answered, and not cut off.
    await eventually(lambda: depot.depot.sessions.require("engine-1", "s").num_running == 1)
    store.cancel()
    await depot.assert_comes_to_rest()

    async def are_counted() -> bool:  # a call is counted when its task has ended, a moment after its operation
        page = await scrape(depot.server)
        return [rpcs(page, "Lookup", status) for status in ("DEADLINE_EXCEEDED", "CANCELLED")] == [1, 1]

    await eventually(are_counted)
    page = await scrape(depot.server)
    assert page.value(OPERATION, operation="lookup", outcome="cancelled", model_name="model") == 2


def rpcs(page: Page, method: str, status: str) -> float | None:
    """Return how many measured calls of a method of CacheService ended with a status."""
    return page.value(
        "rpc_server_call_duration_seconds_count",
        rpc_system_name="grpc",
        rpc_method=f"kvdepot.v1.CacheService/{method}",
        rpc_response_status_code=status,
    )


async def test_a_blocked_loop_is_measured(depot: Site) -> None:
    await asyncio.sleep(0.15)
    time.sleep(0.4)  # noqa: ASYNC251 - on purpose
    await asyncio.sleep(0.15)
    page = await scrape(depot.server)
    late = page.sum("kvdepot_event_loop_lag_seconds_count") - page.sum(
        "kvdepot_event_loop_lag_seconds_bucket", le="0.1"
    )
    assert late >= 1


async def test_the_process_is_measured(depot: Site) -> None:
    page = await scrape(depot.server)
    assert 10 << 20 < (page.value("process_memory_usage_bytes") or 0) < 64 << 30
    assert 0 < page.sum("process_cpu_time_seconds_total") < 36_000
    assert 0 < (page.value("process_uptime_seconds") or 0) < 36_000
    assert (page.value("process_threads") or 0) > 2
    assert (page.value("process_open_file_descriptors") or 0) > 5


# Telemetry's own health


async def test_what_a_full_bus_drops_is_seen(open_site: Open) -> None:
    depot = await open_site(**measured(event_queue_size=8))
    before = await scrape(depot.server)
    assert before.value("kvdepot_events_dropped_total", event_type="LeaseEnded") == 0
    assert before.value("kvdepot_event_queue_capacity") == 8
    assert depot.server.bus is not None
    for _ in range(100):
        depot.server.bus.publish(LeaseEnded(lease_id="l", reason="released", num_chunks=1))
    page = await scrape(depot.server)
    dropped = page.value("kvdepot_events_dropped_total", event_type="LeaseEnded")
    assert dropped is not None
    assert dropped >= 92
    assert dropped + page.sum("kvdepot_leases_ended_total") == 100
    assert page.value("kvdepot_event_queue_depth") == 0
    assert page.value("kvdepot_events_published_total") == page.value("kvdepot_events_delivered_total")


async def test_a_subscriber_that_raises_is_counted_and_harms_no_other(depot: Site) -> None:
    assert depot.server.bus is not None
    depot.server.bus.subscribe(Failing())
    engine = await depot.attach()
    await engine.lookup("s", prompt(16))
    page = await scrape(depot.server)
    assert (page.value("kvdepot_subscriber_errors_total", subscriber="failing") or 0) >= 1
    assert page.sum(OPERATION) == 1


async def test_models_beyond_the_limit_are_one(depot: Site) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(80):
            record = [allocation_record("s", block_ids=[0], token_ids=[number])]
            tasks.create_task(depot.client.report_block_allocation(f"e{number}", f"model-{number}", 1, record))
    page = await scrape(depot.server)
    models = page.labels("kvdepot_sessions_started_total", "model_name")
    assert len(models) == 65
    assert page.value("kvdepot_sessions_started_total", model_name="other") == 80 - 64
    for name in ("kvdepot_l0_blocks", "kvdepot_l0_block_allocations_total"):
        assert page.labels(name, "model_name") <= models
    end_sessions(depot)


def end_sessions(depot: Site) -> None:
    """End sessions of instances that are not attached."""
    for session in list(depot.depot.sessions.newest_first()):
        depot.depot.lifetimes.close_session(session, SessionEnd.REQUESTED)


async def test_hits_of_an_instance_and_the_prefill_that_it_saved(open_site: Open) -> None:
    depot = await open_site(**measured())
    reports = await depot.attach(instance_id="reports", prefill_tokens_per_second=160.0)
    silent = await depot.attach(instance_id="silent")
    await work(reports, "s", 40, seed=1)
    await silent.lookup("t", prompt(40, 2))
    page = await scrape(depot.server)
    of = {"instance_id": "reports", "model_name": "model"}
    assert page.value("kvdepot_instance_lookup_tokens_total", **of) == 40
    assert page.value("kvdepot_instance_lookup_matched_tokens_total", **of) == 32
    assert page.value("kvdepot_instance_lookup_matched_tokens_total", **{**of, "instance_id": "silent"}) == 0
    assert page.value("kvdepot_prefill_saved_seconds_total", **of, source="reported") == 32 / 160
    assert page.value("kvdepot_prefill_token_rate", **of, source="reported") == 160
    assert page.labels("kvdepot_prefill_token_rate", "instance_id") == {"reports"}


async def test_what_runs_is_a_metric(open_site: Open) -> None:
    depot = await open_site(**measured())
    page = await scrape(depot.server)
    assert page.labels("kvdepot_build_info", "version") == {__version__}
    assert page.labels("kvdepot_build_info", "transfer_backend") == {depot.depot.backend.name}
    assert page.sum("kvdepot_build_info") == 1


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
async def test_a_prefill_rate_that_is_none_is_refused(open_site: Open, rate: float) -> None:
    depot = await open_site()
    with pytest.raises(DepotError, match=r"prefill_tokens_per_second: is .*, not above 0") as bad:
        await depot.attach(prefill_tokens_per_second=rate)
    assert bad.value.reason == "INVALID_REQUEST"
