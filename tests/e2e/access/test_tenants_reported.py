"""Tenants in events, metrics and status: each value has its tenant, and a tenant sees no names of others."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvdepot import KvShape
from kvdepot.layout import layouts
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from telemetry.metrics.definitions import METRICS
from tests.e2e.access.calling import Calling, Denied
from tests.e2e.access.conftest import RED, Connect, StartTenants
from tests.e2e.collector import attributes, running_collector
from tests.fakes.authority import Authority
from tests.fakes.waiting import eventually

SHAPE = KvShape(num_layers=1, num_blocks=16, block_size=4, num_heads=1, head_size=128, dtype="uint8")
CHUNK_BYTES = 2 * 16 * 128
OF_TENANTS = ("kvdepot.tenant.", "kvdepot.access.", "kvdepot.files.", "kvdepot.tls.")


async def attached(call: Calling) -> Any:
    stream = call.start(
        "AttachInstance",
        cache_pb2.AttachInstanceRequest(
            instance_id="engine", model_name="m", world_size=1, groups=[layouts.VLLM.without_memory(SHAPE)]
        ),
    )
    await stream.read()
    return stream


async def stored(call: Calling, prompt: int, num_chunks: int = 2) -> None:
    tokens = range(prompt * 1000, prompt * 1000 + num_chunks * 16)
    header = cache_pb2.StoreInlineHeader(
        instance_id="engine", session_id="s", prefix=cache_pb2.Prefix(token_ids=tokens)
    )
    await call(
        "StoreInline",
        [
            cache_pb2.StoreInlineRequest(header=header),
            cache_pb2.StoreInlineRequest(data=bytes(CHUNK_BYTES * num_chunks)),
        ],
    )


async def test_an_eviction_is_an_event_of_the_tenant_that_owned_the_chunks(
    start_tenants: StartTenants, connect: Connect
) -> None:
    server = await start_tenants(l1_size=4 * CHUNK_BYTES)
    red, blue = (connect(server.addresses[0], f"{name}-token") for name in ("red", "blue"))
    streams = [await attached(call) for call in (red, blue)]
    watches = []
    for call in (red, blue):
        watching = call.start("WatchEvents", observability_pb2.WatchEventsRequest(event_types=["ChunksEvicted"]))
        await watching.initial_metadata()
        watches.append(watching)
    await stored(blue, 1)
    for prompt in (2, 3):
        await stored(red, prompt)
    event = (await watches[1].read()).event
    assert (event.type, event.tenant) == ("ChunksEvicted", "blue")
    await stored(red, 4)  # which evicts red's own
    event = (await watches[0].read()).event
    assert (event.type, event.tenant) == ("ChunksEvicted", "red")
    for each in (*streams, *watches):
        each.cancel()


async def test_an_admin_sees_whose_everything_is_and_a_tenant_its_own_names(
    start_tenants: StartTenants, connect: Connect
) -> None:
    server = await start_tenants()
    red, blue, ops = (connect(server.addresses[0], f"{name}-token") for name in ("red", "blue", "ops"))
    watching = ops.start("WatchEvents", observability_pb2.WatchEventsRequest(event_types=["InstanceAttached"]))
    await watching.initial_metadata()
    streams = [await attached(call) for call in (red, blue)]
    events = [(await watching.read()).event for _ in range(2)]
    assert [(event.tenant, event.instance_id) for event in events] == [("red", "engine"), ("blue", "engine")]
    for call, num_chunks in ((red, 1), (blue, 2)):
        await stored(call, 1, num_chunks)

    (instances,) = await ops("ListInstances", admin_pb2.ListInstancesRequest())
    assert [(each.tenant, each.instance_id) for each in instances.instances] == [("blue", "engine"), ("red", "engine")]
    (status,) = await ops("GetStatus", admin_pb2.GetStatusRequest())
    assert (status.num_instances, status.num_sessions, status.tiers[0].num_chunks) == (2, 2, 3)
    assert [(each.name, each.num_chunks, each.used_bytes) for each in status.tenants] == [
        ("blue", 2, 2 * CHUNK_BYTES),
        ("ops", 0, 0),
        ("red", 1, CHUNK_BYTES),
    ]
    (sessions,) = await ops("ListSessions", observability_pb2.ListSessionsRequest(page_size=1))
    (rest,) = await ops("ListSessions", observability_pb2.ListSessionsRequest(page_token=sessions.next_page_token))
    assert [each.tenant for each in (*sessions.sessions, *rest.sessions)] == ["blue", "red"]
    (own,) = await red("ListSessions", observability_pb2.ListSessionsRequest())
    assert [(each.tenant, each.instance_id) for each in own.sessions] == [("red", "engine")]

    (answer,) = await ops("ClearCache", admin_pb2.ClearCacheRequest(tenant="red"))
    assert answer.num_cleared_chunks == 1
    (status,) = await ops("GetStatus", admin_pb2.GetStatusRequest())
    assert {each.name: each.num_chunks for each in status.tenants} == {"blue": 2, "ops": 0, "red": 0}
    for stream in (*streams, watching):
        stream.cancel()


async def test_metrics_have_a_label_for_the_tenant(start_tenants: StartTenants, connect: Connect) -> None:
    server = await start_tenants(disable_metrics=False, prometheus_port=0)
    red, blue = (connect(server.addresses[0], f"{name}-token") for name in ("red", "blue"))
    streams = [await attached(call) for call in (red, blue)]
    for call, num_chunks in ((red, 1), (blue, 2)):
        await stored(call, 1, num_chunks)
    await eventually(lambda: server.bus.stats().depth == 0)
    page = await _scraped(server.prometheus_address)
    for line in (
        'kvdepot_tenant_operations_total{operation="store",outcome="ok",tenant="red"} 1.0',
        f'kvdepot_tenant_io_bytes_total{{operation="store",tenant="blue"}} {2 * CHUNK_BYTES:.1f}',
        f'kvdepot_tenant_l1_used_bytes{{tenant="red"}} {CHUNK_BYTES:.1f}',
        'kvdepot_tenant_sessions_live{tenant="blue"} 1.0',
        'kvdepot_tenant_rpcs_running{kind="stream",tenant="red"} 1.0',
        'kvdepot_files_broken{file="tenants"} 0.0',
    ):
        assert line in page, line
    for stream in streams:
        stream.cancel()


async def test_every_metric_of_tenants_and_files_is_exported(
    start_tenants: StartTenants, connect: Connect, authority: Authority, tmp_path: Path
) -> None:
    cert, key = authority.issue().write(tmp_path, "depot")
    limited = RED | {"limits": {"max_attachments": 1}}
    server = await start_tenants(limited, disable_metrics=False, prometheus_port=0, tls_cert=cert, tls_key=key)
    credentials = grpc.ssl_channel_credentials(authority.pem)
    red, unknown = (connect(server.addresses[0], token, credentials) for token in ("red-token", "wrong"))
    stream = await attached(red)
    await stored(red, 1)
    for call in (red, unknown):
        with pytest.raises(Denied):
            await call("WatchEvents", observability_pb2.WatchEventsRequest())
    await eventually(lambda: server.bus.stats().depth == 0)
    page = await _scraped(server.prometheus_address)
    names = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if not line.startswith("#")}
    assert {each.prometheus_name for each in METRICS if each.name.startswith(OF_TENANTS)} <= names
    assert 'kvdepot_access_denied_total{reason="TOKEN_UNKNOWN",tenant=""} 1.0' in page
    assert 'kvdepot_tenant_rpcs_refused_total{reason="TOO_MANY_RPCS",tenant="red"} 1.0' in page
    stream.cancel()


async def test_spans_name_their_tenant(start_tenants: StartTenants, connect: Connect) -> None:
    async with running_collector() as collector:
        # Left open, so that the server sends its spans within the block.
        server = await start_tenants(enable_tracing=True, otlp_endpoint=collector.endpoint, disable_metrics=True)
        red, blue = (connect(server.addresses[0], f"{name}-token") for name in ("red", "blue"))
        streams = [await attached(call) for call in (red, blue)]
        for call in (red, blue):
            await stored(call, 1)
            await call("EndSession", cache_pb2.EndSessionRequest(instance_id="engine", session_id="s"))

        def labels() -> set[tuple[str, str, str]]:
            found = [(span.name.rpartition("/")[2], attributes(span)) for span in collector.spans]
            return {
                (name, str(facts.get("kvdepot.tenant", "")), str(facts.get("kvdepot.instance_id", "")))
                for name, facts in found
            }

        expected = {
            (name, tenant, instance_id)
            for tenant in ("red", "blue")
            for name, instance_id in (
                ("session", f"{tenant}/engine"),
                ("store", f"{tenant}/engine"),
                ("StoreInline", f"{tenant}/engine"),
                ("EndSession", f"{tenant}/engine"),
            )
        }
        await eventually(lambda: labels() >= expected)
        for stream in streams:
            stream.cancel()


async def _scraped(address: str) -> str:
    def page() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(page)
