"""Every refusal is counted. A refused attach or store is an event and a log line with its owner and reason."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from kvdepot import AsyncDepotClient, DepotError, KvShape
from kvdepot.errors import depot_error
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2, observability_pb2
from service.observability.gauges import read_depot
from service.server import Server
from telemetry.metrics import definitions
from tests.e2e.access.calling import METHODS, Calling, as_is, empty_request
from tests.e2e.access.conftest import BLUE, Connect, StartTenants
from tests.e2e.servers import StartServer

GROUP = layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(
    KvShape(num_layers=1, num_blocks=4, block_size=16, num_heads=1, head_size=8, dtype="float16")
)
NO_MESSAGE = b"\xff" * 7


def counted(server: Server, rpc: str) -> dict[str, int]:
    """Return the refusals of an RPC in the metric, by reason."""
    gauges = read_depot(server.depots, server._admission, server._refusals, populated_bytes=0)
    counts = gauges[definitions.RPCS_REFUSED]
    return {reason: int(number) for (method, reason), number in counts.items() if method.endswith(f"/{rpc}")}


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [dict(each.args) for each in caplog.records if getattr(each, "event", "") == "CallRefused"]  # type: ignore[arg-type]


async def refused(call: Any) -> DepotError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return depot_error(caught.value)


async def test_why_an_engine_does_not_attach_is_in_the_log(
    server: Server, client: AsyncDepotClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with await client.attach(instance_id="engine", model_name="m", groups=[GROUP]):
        with pytest.raises(DepotError, match="RANK_ATTACHED") as caught:
            await client.attach(instance_id="engine", model_name="m", groups=[GROUP])
    (line,) = lines(caplog)
    assert (line["rpc"], line["instance_id"]) == ("kvdepot.v1.CacheService/AttachInstance", "engine")
    assert (line["status"], line["reason"]) == ("FAILED_PRECONDITION", "RANK_ATTACHED")
    assert line["detail"] == caught.value.message
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert {record.levelno for record in caplog.records if hasattr(record, "event")} >= {logging.WARNING}
    assert counted(server, "AttachInstance") == {"RANK_ATTACHED": 1}


async def test_refused_stores_are_events_with_their_instance(start_tenants: StartTenants, connect: Connect) -> None:
    server = await start_tenants(BLUE)
    blue = connect(server.addresses[0], "blue-token")
    watching = blue.start("WatchEvents", observability_pb2.WatchEventsRequest(event_types=["CallRefused"]))
    await watching.initial_metadata()
    header = cache_pb2.StoreInlineHeader(
        instance_id="unknown", session_id="s", prefix=cache_pb2.Prefix(token_ids=range(16))
    )
    ids: dict[str, Any] = {"instance_id": "unknown", "session_id": "s", "prefix": header.prefix}
    for rpc, request in (
        ("Store", cache_pb2.StoreRequest(**ids)),
        ("StoreInline", [cache_pb2.StoreInlineRequest(header=header)]),
    ):
        with pytest.raises(Exception, match=r"INSTANCE_NOT_FOUND|INVALID_REQUEST"):
            await blue(rpc, request)
        event = (await watching.read()).event
        assert (event.tenant, event.instance_id, event.attributes["rpc"]) == (
            "blue",
            "unknown",
            f"kvdepot.v1.CacheService/{rpc}",
        )
        assert event.attributes["detail"]
        assert counted(server, rpc) == {event.attributes["reason"]: 1}
    watching.cancel()


async def test_a_burst_of_refused_stores_has_few_lines_and_counts_all(
    server: Server, client: AsyncDepotClient, caplog: pytest.LogCaptureFixture, connect: Connect
) -> None:
    call = connect(server.addresses[0])
    for _ in range(30):
        with pytest.raises(Exception, match="INVALID_REQUEST"):
            await call("Store", cache_pb2.StoreRequest(instance_id="engine"))
    assert len(lines(caplog)) == 5
    assert counted(server, "Store") == {"INVALID_REQUEST": 30}


async def test_what_a_refused_client_sends_forges_no_line(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    request = cache_pb2.StoreRequest(instance_id="x\n" + "y" * 100_000)
    with pytest.raises(Exception, match="INVALID_REQUEST"):
        await connect(server.addresses[0])("Store", request)
    (record,) = [each for each in caplog.records if getattr(each, "event", "") == "CallRefused"]
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 4_000


@pytest.mark.parametrize("rpc", METHODS)
async def test_bytes_that_are_no_message_are_refused_as_such(server: Server, connect: Connect, rpc: str) -> None:
    call = connect(server.addresses[0])
    path = f"/{METHODS[rpc].containing_service.full_name}/{rpc}"

    async def messages() -> AsyncIterator[bytes]:
        yield NO_MESSAGE

    error = await refused(call.channel.stream_stream(path, as_is, as_is)(messages()))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "are no message of" in error.message
    assert counted(server, rpc) == {"INVALID_REQUEST": 1}


async def test_bytes_that_are_no_message_in_the_midst_of_a_stream_are_refused_as_such(
    server: Server, client: AsyncDepotClient, connect: Connect
) -> None:
    header = cache_pb2.StoreInlineHeader(
        instance_id="engine", session_id="s", prefix=cache_pb2.Prefix(token_ids=range(16))
    )

    async def messages() -> AsyncIterator[bytes]:
        yield cache_pb2.StoreInlineRequest(header=header).SerializeToString()
        yield NO_MESSAGE

    async with await client.attach(instance_id="engine", model_name="m", groups=[GROUP]):
        path = "/kvdepot.v1.CacheService/StoreInline"
        error = await refused(connect(server.addresses[0]).channel.stream_stream(path, as_is, as_is)(messages()))
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        status = await client.get_status()
        assert status.tiers[0].num_chunks == 0


@pytest.mark.parametrize("rpc", [rpc for rpc in METHODS if rpc != "StoreInline"])
async def test_a_call_without_a_message_is_refused_as_such(server: Server, connect: Connect, rpc: str) -> None:
    path = f"/{METHODS[rpc].containing_service.full_name}/{rpc}"

    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    error = await refused(connect(server.addresses[0]).channel.stream_stream(path, as_is, as_is)(nothing()))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_refusals_before_a_request_is_read_are_counted_too(
    start_tenants: StartTenants, start_server: StartServer, connect: Connect
) -> None:
    server = await start_tenants(BLUE)
    call: Calling = connect(server.addresses[0])
    with pytest.raises(Exception, match="CREDENTIALS_MISSING"):
        await call("Lookup", empty_request("Lookup"))
    with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
        await call.channel.unary_unary("/other.Service/Method", as_is, as_is)(b"")
    assert counted(server, "Lookup") == {"CREDENTIALS_MISSING": 1}
    assert server._refusals.num_refused["other", "UNIMPLEMENTED"] == 1
