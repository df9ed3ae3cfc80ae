"""Pins of tenants: who sees and ends them, what each may hold, and their end with the tenant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from kvdepot import KvShape
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2
from tests.e2e.access.calling import Calling, Denied, write_tenants
from tests.e2e.access.conftest import BLUE, OPS, RED, Connect, StartTenants
from tests.fakes.waiting import eventually

CHUNK_SIZE = 16
SLOT_BYTES = 4_096
GROUP = layouts.NL_X_NB_BS_HS.without_memory(
    KvShape(num_layers=1, num_blocks=1, block_size=CHUNK_SIZE, head_size=4, dtype="float32")
)
CHUNK_BYTES = CHUNK_SIZE * 4 * 4
NUM_SLOTS = 32
FLAGS = {"l1_size": NUM_SLOTS * SLOT_BYTES, "tenant_max_pinned": 0.25}


async def stored(call: Calling, num_chunks: int) -> Any:
    """Attach an inline engine that stores a prompt of so many chunks. Return its stream."""
    stream = call.start(
        "AttachInstance",
        cache_pb2.AttachInstanceRequest(instance_id="i", model_name="m", world_size=1, groups=[GROUP]),
    )
    await stream.read()
    header = cache_pb2.StoreInlineHeader(instance_id="i", session_id="s", prefix=prefix(num_chunks))
    data = bytes(num_chunks * CHUNK_BYTES)
    await call("StoreInline", [cache_pb2.StoreInlineRequest(header=header), cache_pb2.StoreInlineRequest(data=data)])
    return stream


def prefix(num_chunks: int) -> cache_pb2.Prefix:
    return cache_pb2.Prefix(token_ids=range(num_chunks * CHUNK_SIZE))


async def pin(call: Calling, num_chunks: int) -> cache_pb2.Pin:
    request = cache_pb2.PinPrefixRequest(instance_id="i", prefix=prefix(num_chunks), ttl=Duration(seconds=1_000))
    (answer,) = await call("PinPrefix", request)
    found: cache_pb2.Pin = answer.pin
    return found


async def pins(call: Calling, tenant: str = "") -> list[str]:
    (answer,) = await call("ListPins", cache_pb2.ListPinsRequest(tenant=tenant))
    return [each.tenant for each in answer.pins]


async def unpin(call: Calling, pin_id: str, tenant: str = "") -> bool:
    (answer,) = await call("UnpinPrefix", cache_pb2.UnpinPrefixRequest(pin_id=pin_id, tenant=tenant))
    return bool(answer.HasField("pin"))


async def test_a_tenant_sees_and_ends_its_own_pins_and_an_admin_all(
    start_tenants: StartTenants, connect: Connect
) -> None:
    server = await start_tenants(**FLAGS)
    red, blue, ops = (connect(server.addresses[0], f"{name}-token") for name in ("red", "blue", "ops"))
    streams = [await stored(call, 2) for call in (red, blue)]
    of_red, of_blue = await pin(red, 2), await pin(blue, 1)
    assert (await pins(red), await pins(blue)) == (["red"], ["blue"])
    assert await pins(ops) == ["blue", "red"]
    assert await pins(ops, "red") == ["red"]
    assert not await unpin(red, of_blue.pin_id), "another tenant's id is as good as none"
    for call in (lambda: pins(red, "blue"), lambda: unpin(red, of_blue.pin_id, "blue")):
        with pytest.raises(Denied) as denied:
            await call()
        assert (denied.value.code, denied.value.reason) == ("PERMISSION_DENIED", "OTHER_TENANT")
    assert not await unpin(ops, of_blue.pin_id)
    assert await unpin(ops, of_blue.pin_id, "blue")
    assert await unpin(red, of_red.pin_id)
    assert await pins(ops) == []
    for stream in streams:
        stream.cancel()


async def test_the_file_of_tenants_says_what_a_tenant_may_pin(start_tenants: StartTenants, connect: Connect) -> None:
    more = {**BLUE, "limits": {"max_pinned": 12 * SLOT_BYTES}}
    server = await start_tenants(RED, more, OPS, **FLAGS)
    red, blue = (connect(server.addresses[0], f"{name}-token") for name in ("red", "blue"))
    streams = [await stored(call, 12) for call in (red, blue)]
    with pytest.raises(Denied) as denied:
        await pin(red, 9)
    assert denied.value.reason == "PIN_LIMIT_EXCEEDED"
    assert "the tenant has pinned 0 of its 32768 bytes" in denied.value.message
    assert (await pin(blue, 12)).num_chunks == 12
    with pytest.raises(Denied) as denied:
        await pin(red, 5)  # all pins together hold half of L1
    assert "at the moment" in denied.value.message
    assert (await pin(red, 4)).num_chunks == 4
    for stream in streams:
        stream.cancel()


async def test_the_pins_of_a_tenant_that_is_removed_end(
    start_tenants: StartTenants, connect: Connect, tmp_path: Path
) -> None:
    server = await start_tenants(**FLAGS)
    red, ops = (connect(server.addresses[0], f"{name}-token") for name in ("red", "ops"))
    stream = await stored(red, 4)
    await pin(red, 4)
    assert await pins(ops) == ["red"]
    write_tenants(tmp_path / "tenants.yaml", BLUE, OPS)

    async def gone() -> bool:
        return not await pins(ops)

    await eventually(gone)
    await eventually(lambda: server.depots.index.pool.used_bytes == 0)
    server.depots.index.check()
    assert server.depots.pin_bounds.bytes_by_tenant.total() == 0
    stream.cancel()
