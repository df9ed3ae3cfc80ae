"""Ends of attachments: an engine that stops in order is no loss, also with open calls; one that dies is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from kvdepot import AsyncDepotClient, DepotClient, DepotError, KvShape, token_prefix
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2, observability_pb2
from kvdepot.v1.cache_pb2_grpc import CacheServiceStub
from service.server import Server
from tests.e2e.cli.test_selftest import selftest
from tests.e2e.test_engine_death import engine_process
from tests.fakes.waiting import eventually

GROUP = layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(
    KvShape(num_layers=1, num_blocks=4, block_size=16, num_heads=1, head_size=8, dtype="float16")
)
SECONDS = 20


@asynccontextmanager
async def ends(client: AsyncDepotClient) -> AsyncIterator[asyncio.Queue[str]]:
    """Record the reasons for which attachments end, from here on."""
    reasons: asyncio.Queue[str] = asyncio.Queue()
    request = observability_pb2.WatchEventsRequest(event_types=["InstanceDetached"])
    call = client._calls.observability.WatchEvents(request)
    await call.initial_metadata()  # it sees everything from here on

    async def watch() -> None:
        async for response in call:
            reasons.put_nowait(str(response.event.attributes["reason"]))

    watching = asyncio.create_task(watch())
    try:
        yield reasons
    finally:
        call.cancel()
        await asyncio.wait([watching])


async def reason(reasons: asyncio.Queue[str]) -> str:
    async with asyncio.timeout(SECONDS):
        return await reasons.get()


async def test_selftests_do_not_look_like_engines_that_die(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "64MiB")
    async with AsyncDepotClient(address) as client, ends(client) as reasons:
        for _ in range(3):
            result = await asyncio.to_thread(selftest, "--address", address)
            assert result.exit_code == 0, result.output
            assert await reason(reasons) == "closed"


async def test_a_close_with_open_sessions_is_no_loss(server: Server, client: AsyncDepotClient) -> None:
    async with ends(client) as reasons:
        async with await client.attach(instance_id="engine", model_name="m", groups=[GROUP]) as attachment:
            await attachment.lookup("left open", token_prefix(range(16)))
        assert await reason(reasons) == "closed"
        assert attachment.lost_reason is None
        status = await client.get_status()
        assert (status.num_instances, status.num_sessions) == (0, 0)


async def test_closing_a_client_closes_its_attachments_in_order(server: Server, client: AsyncDepotClient) -> None:
    def engine() -> None:
        with DepotClient(server.addresses[0]) as other:
            attachment = other.attach(instance_id="engine", model_name="m", groups=[GROUP])
            attachment.lookup("left open", token_prefix(range(16)))

    async with ends(client) as reasons:
        await asyncio.to_thread(engine)
        assert await reason(reasons) == "closed"


async def test_an_engine_that_is_killed_is_a_loss(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--chunk-size", "16", "--l1-size", "64MiB", "--transfer-threads", "1")
    async with AsyncDepotClient(address) as client, ends(client) as reasons, engine_process(address, "fd") as process:

        async def has_work() -> bool:
            return (await client.get_status()).num_leases > 0

        await eventually(has_work, within_seconds=SECONDS)
        process.kill()
        assert await reason(reasons) == "lost"


async def test_a_stream_ends_with_ok_when_its_rank_is_detached(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        stub = CacheServiceStub(channel)
        stream = stub.AttachInstance(
            cache_pb2.AttachInstanceRequest(instance_id="engine", model_name="m", world_size=1, groups=[GROUP])
        )
        await stream.read()
        await stub.DetachInstance(cache_pb2.DetachInstanceRequest(instance_id="engine"))
        assert not server.depot.instances
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("instance_id", "rank", "message"),
    [("other", 0, "INSTANCE_NOT_FOUND"), ("engine", 1, "RANK_NOT_FOUND"), ("", 0, "INVALID_REQUEST")],
)
async def test_what_is_not_attached_can_not_be_detached(
    server: Server, client: AsyncDepotClient, instance_id: str, rank: int, message: str
) -> None:
    async with await client.attach(instance_id="engine", model_name="m", groups=[GROUP]) as attachment:
        request = cache_pb2.DetachInstanceRequest(instance_id=instance_id, rank=rank)
        with pytest.raises(DepotError, match=message):
            await client._calls.unary(client._calls.cache.DetachInstance, request, SECONDS)
        assert not attachment.lost
