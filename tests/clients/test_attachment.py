"""An attachment lasts as long as its stream, and `on_lost` is called when the stream ends."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvdepot import AsyncDepotClient, Closed, DepotError, KvShape
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2
from tests.clients.conftest import Side
from tests.fakes.depot import CHUNK_BYTES, CHUNK_SIZE, FakeDepot, bare_failure, failure
from tests.fakes.waiting import eventually

SHAPE = KvShape(num_layers=2, num_blocks=4, block_size=8, num_heads=2, head_size=16, dtype="bfloat16")


async def test_attach_sends_the_description_and_shows_the_acknowledgement(
    side: Side, client: Any, depot: FakeDepot
) -> None:
    group = layouts.NL_X_TWO_NB_BS_NH_HS.from_shape(SHAPE)
    region = cache_pb2.MemoryRegion(size_bytes=1 << 20, posix_shm=cache_pb2.PosixSharedMemory(name="kv"))
    attachment = await side(
        client.attach,
        instance_id="engine-0",
        model_name="model",
        groups=[group],
        regions=[region],
        world_size=4,
        rank=3,
        model_revision="r1",
        block_hash_seed="sha256 seed=0",
    )
    assert depot.last("AttachInstance") == cache_pb2.AttachInstanceRequest(
        instance_id="engine-0",
        model_name="model",
        world_size=4,
        rank=3,
        groups=[group],
        regions=[region],
        model_revision="r1",
        block_hash_seed="sha256 seed=0",
    )
    assert depot.deadlines["AttachInstance"] is None
    assert (attachment.instance_id, attachment.rank) == ("engine-0", 3)
    assert (attachment.chunk_size, attachment.chunk_bytes) == (CHUNK_SIZE, CHUNK_BYTES)
    assert (attachment.server_version, attachment.transfer_backend) == ("1.2.3", "host")
    assert (attachment.depot_incarnation, attachment.adopted_chunks) == ("first start", 7)
    assert attachment.other_block_hash_seeds == ()
    assert not attachment.lost
    assert not attachment.draining
    await side(attachment.close)


async def test_refused_attach_raises_and_is_no_loss(side: Side, client: Any, depot: FakeDepot) -> None:
    depot.failures["AttachInstance"] = failure(grpc.StatusCode.FAILED_PRECONDITION, "RANK_ATTACHED")
    losses: list[DepotError] = []
    with pytest.raises(DepotError) as raised:
        await side(client.attach, instance_id="engine-0", model_name="model", groups=[], on_lost=losses.append)
    assert raised.value.reason == "RANK_ATTACHED"
    assert losses == []


async def test_attach_that_is_not_acknowledged_in_time_is_given_up(side: Side, client: Any, depot: FakeDepot) -> None:
    depot.hanging.add("AttachInstance")
    with pytest.raises(DepotError) as raised:
        await side(client.attach, instance_id="engine-0", model_name="model", groups=[], timeout_seconds=0.2)
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: not depot.requests or depot.detached.is_set())  # it may have been given up on its way


@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [
        (None, grpc.StatusCode.UNAVAILABLE, "ATTACHMENT_ENDED"),
        (failure(grpc.StatusCode.UNAVAILABLE, "DRAINING"), grpc.StatusCode.UNAVAILABLE, "DRAINING"),
        (bare_failure(grpc.StatusCode.INTERNAL), grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
async def test_end_of_the_stream_is_noticed_while_no_call_is_made(
    how: Any, code: grpc.StatusCode, reason: str, side: Side, client: Any, depot: FakeDepot
) -> None:
    losses: list[DepotError] = []
    attachment = await side(client.attach, instance_id="engine-0", model_name="model", groups=[], on_lost=losses.append)
    depot.end_attachment(how)
    error = await side(attachment.wait_lost, 10)
    assert (error.code, error.reason) == (code, reason)
    assert attachment.lost
    assert attachment.lost_reason is error
    await side(attachment.close)
    assert losses == [error]


async def test_death_of_the_depot_is_a_loss(side: Side, depot: FakeDepot) -> None:
    client = side.client_class(depot.address)
    attachment = await side(client.attach, instance_id="engine-0", model_name="model", groups=[])
    await asyncio.to_thread(depot.stop)
    assert (await side(attachment.wait_lost, 10)).reason == "UNREACHABLE"
    assert attachment.lost
    await side(client.close)


async def test_close_detaches_and_is_no_loss(side: Side, client: Any, depot: FakeDepot) -> None:
    losses: list[DepotError] = []
    attachment = await side(client.attach, instance_id="engine-0", model_name="model", groups=[], on_lost=losses.append)
    assert not depot.detached.is_set()
    await side(attachment.close)
    await side(attachment.close)
    assert await asyncio.to_thread(depot.detached.wait, 10)
    assert await side(attachment.wait_lost) is None
    assert not attachment.lost
    assert losses == []


async def test_closed_attachment_leaves_nothing_behind(side: Side, client: Any) -> None:
    attachment = await side(client.attach, instance_id="engine-0", model_name="model", groups=[])
    await side(attachment.close)
    assert [task for task in asyncio.all_tasks() if task.get_name() == "kvdepot-engine-0"] == []
    await eventually(lambda: "kvdepot-engine-0" not in [thread.name for thread in threading.enumerate()])
    forgotten = weakref.ref(attachment)
    del attachment
    await eventually(lambda: gc.collect() >= 0 and forgotten() is None)  # the thread that closed it lets go of it soon


async def test_wait_for_a_loss_ends_with_its_time(side: Side, attachment: Any) -> None:
    assert await side(attachment.wait_lost, 0.02) is None
    assert not attachment.lost


async def test_leaving_the_with_block_detaches(side: Side, depot: FakeDepot) -> None:
    def blocking() -> None:
        with side.client_class(depot.address) as client:
            with client.attach(instance_id="engine-0", model_name="model", groups=[]):
                assert not depot.detached.is_set()
            assert depot.detached.wait(10)
        with pytest.raises(Closed, match="CLIENT_CLOSED"):
            client.get_status()

    async def on_loop() -> None:
        async with side.client_class(depot.address) as client:
            async with await client.attach(instance_id="engine-0", model_name="model", groups=[]):
                assert not depot.detached.is_set()
            assert await asyncio.to_thread(depot.detached.wait, 10)
        with pytest.raises(Closed, match="CLIENT_CLOSED"):
            await client.get_status()

    await (asyncio.to_thread(blocking) if side.blocks else on_loop())


async def test_draining_is_shown_before_the_end(side: Side, attachment: Any, depot: FakeDepot) -> None:
    depot.notify(cache_pb2.NOTICE_DRAINING)
    await eventually(lambda: attachment.draining)
    assert not attachment.lost
    assert attachment.chunk_size == CHUNK_SIZE


async def test_on_lost_may_raise_and_may_close(
    side: Side, client: Any, depot: FakeDepot, caplog: pytest.LogCaptureFixture
) -> None:
    closed = threading.Event()

    def on_lost(error: DepotError) -> None:
        if side.blocks:
            attachment.close()
        closed.set()
        raise RuntimeError("the engine's own trouble")

    attachment = await side(client.attach, instance_id="engine-0", model_name="model", groups=[], on_lost=on_lost)
    depot.end_attachment()
    assert (await side(attachment.wait_lost, 10)).reason == "ATTACHMENT_ENDED"
    assert await asyncio.to_thread(closed.wait, 10)
    await eventually(lambda: "the engine's own trouble" in caplog.text)


async def test_close_of_the_client_detaches_and_is_no_loss(side: Side, depot: FakeDepot) -> None:
    losses: list[DepotError] = []
    client = side.client_class(depot.address)
    attachment = await side(client.attach, instance_id="engine-0", model_name="model", groups=[], on_lost=losses.append)
    await side(client.close)
    assert await asyncio.to_thread(depot.detached.wait, 10)
    assert await side(attachment.wait_lost, 10) is None
    assert not attachment.lost
    assert losses == []


async def test_cancelled_attach_leaves_no_stream(depot: FakeDepot) -> None:
    depot.hanging.add("AttachInstance")
    async with AsyncDepotClient(depot.address) as client:
        attaching = asyncio.create_task(client.attach(instance_id="engine-0", model_name="model", groups=[]))
        await eventually(lambda: bool(depot.requests))
        attaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attaching
        assert await asyncio.to_thread(depot.detached.wait, 10)


@pytest.mark.parametrize("client_class", ["DepotClient", "AsyncDepotClient"])
def test_process_that_never_closes_ends_quietly(client_class: str, depot: FakeDepot) -> None:
    script = f"""
import asyncio, kvdepot
async def main():
    client = kvdepot.{client_class}({depot.address!r})
    attachment = client.attach(instance_id="engine-0", model_name="model", groups=[])
    if {client_class == "AsyncDepotClient"}:
        attachment = await attachment
    print(attachment)
asyncio.run(main())
"""
    root = Path(__file__).parents[2] / "clients" / "python"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "engine-0/0 attached" in ended.stdout
    assert depot.detached.wait(10)
