"""A mistake in an argument is named before a call is made, by its field."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from kvdepot import (
    AsyncDepotClient,
    Closed,
    DepotError,
    InvalidArgument,
    KvShape,
    SharedBuffer,
    SharedRegions,
    block_table,
    hash_prefix,
    token_prefix,
)
from kvdepot.attach_request import attach_request
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2
from tests.clients.conftest import Side
from tests.fakes.depot import FakeDepot
from tests.fakes.waiting import eventually

SHAPE = KvShape(num_layers=2, num_blocks=4, block_size=4, num_heads=2, head_size=16, dtype="bfloat16")
GROUP = layouts.NL_X_TWO_NB_BS_NH_HS.from_shape(SHAPE)
REGION = cache_pb2.MemoryRegion(size_bytes=1 << 20, posix_shm=cache_pb2.PosixSharedMemory(name="kv"))
PROMPT = [1, 2, 3]

WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], str, str]] = [
    ("lookup", ("s", [1, -1]), {}, "prefix.token_ids[1]", "is -1, and the range of ids is 0 to 4294967295"),
    ("lookup", ("s", [1, 2**32]), {}, "prefix.token_ids[1]", "is 4294967296, and the range"),
    ("lookup", ("s", np.array([3, -7])), {}, "prefix.token_ids[1]", "is -7, and the range"),
    ("lookup", ("s", np.array([1.0])), {}, "prefix.token_ids", "holds float64, and ids are integers"),
    ("lookup", ("s", [1, None]), {}, "prefix.token_ids[1]", "is None, and ids are integers"),
    ("lookup", ("s", ["a"]), {}, "prefix.token_ids[0]", "is 'a', and ids are integers"),
    ("lookup", ("s", [[1, 2]]), {}, "prefix.token_ids[0]", "is a list of 2, and ids are integers"),
    ("lookup", ("s", np.zeros((1, 3), int)), {}, "prefix.token_ids", "a batch: pass the ids of one prompt"),
    ("lookup", ("s", None), {}, "prefix.token_ids", "is None, not a list or an array of ids"),
    ("lookup", ("s", "a text"), {}, "prefix.token_ids", "is 'a text', not a list or an array of ids"),
    ("lookup", ("s", object()), {}, "prefix.token_ids", "is a object, not a list or an array of ids"),
    ("lookup", (5, PROMPT), {}, "session_id", "is 5, not a string"),
    ("lookup", ("s", PROMPT), {"computed_tokens": -1}, "computed_tokens", "is -1, not an integer from 0 to"),
    ("lookup", ("s", PROMPT), {"max_wait_seconds": "soon"}, "max_wait_seconds", "is 'soon', not a number of seconds"),
    ("lookup", ("s", PROMPT), {"timeout_seconds": "1"}, "timeout_seconds", "is '1', not a positive and finite number"),
    ("store", ("s", PROMPT, [1, 2, 3]), {}, "block_tables", "has ids where tables are expected"),
    ("store", ("s", PROMPT, np.array([1, 2])), {}, "block_tables", "has ids where tables are expected"),
    ("store", ("s", PROMPT, None), {}, "block_tables", "is None, and one table for each group is expected"),
    ("store", ("s", PROMPT, 7), {}, "block_tables", "is 7, and one table for each group is expected"),
    ("store", ("s", PROMPT, [[1], None]), {}, "block_tables[1].block_ids", "is None, not a list or an array"),
    ("store", ("s", PROMPT, [[-1, 2, -1]]), {}, "block_tables[0].block_ids[2]", "only at the beginning of a table"),
    ("store", ("s", PROMPT, [[1.5]]), {}, "block_tables[0].block_ids[0]", "is 1.5, and ids are integers"),
    ("store", ("s", PROMPT, [[1]]), {"start_token": -8}, "start_token", "is -8, not an integer from 0 to"),
    ("store", ("s", PROMPT, [[1]]), {"ready_event": "event"}, "ready_event", "is 'event', not bytes"),
    ("retrieve", ("s", None, [[1]]), {}, "lease", "is empty: the lookup matched nothing"),
    ("retrieve", ("s", "", [[1]]), {}, "lease", "is empty: the lookup matched nothing"),
    ("retrieve", ("s", cache_pb2.LookupResponse().lease, [[1]]), {}, "lease", "is empty: the lookup matched nothing"),
    ("retrieve", ("s", cache_pb2.LookupResponse(), [[1]]), {}, "lease", "is a LookupResponse: pass its `lease`"),
    ("retrieve", ("s", 5, [[1]]), {}, "lease", "is 5, not the lease of a lookup"),
    ("release_lease", (None,), {}, "lease", "is empty"),
    ("retrieve_inline", ("s", None), {}, "lease", "is empty"),
    ("end_session", (5,), {}, "session_id", "is 5, not a string"),
    ("store_inline", (5, PROMPT, b""), {}, "session_id", "is 5, not a string"),
]

ATTACHES: list[tuple[dict[str, Any], str, str]] = [
    ({"groups": [GROUP]}, "regions", "is empty, and groups[0] describes memory: pass `regions=shared.regions`"),
    ({"groups": GROUP}, "groups", "is a KvGroup, not a list of KvGroup"),
    ({"groups": [GROUP, "x"]}, "groups[1]", "is 'x', not a KvGroup"),
    ({"groups": [GROUP], "regions": SharedRegions()}, "regions", "pass its `regions`"),
    ({"groups": [GROUP], "regions": [5]}, "regions[0]", "is 5, not a MemoryRegion"),
    ({"groups": [GROUP], "regions": [REGION], "rank": -1}, "rank", "is -1, not an integer from 0"),
    ({"groups": [GROUP], "regions": [REGION], "world_size": "2"}, "world_size", "is '2', not an integer from 0"),
    ({"groups": [GROUP], "regions": [REGION], "instance_id": 7}, "instance_id", "is 7, not a string"),
    (
        {"groups": [layouts.NL_X_TWO_NB_BS_NH_HS.from_shape(SHAPE, region=1)], "regions": [REGION]},
        "groups[0].planes[0].region",
        "is 1, and there are 1 regions: pass all",
    ),
]


def assert_names(error: DepotError, field: str, description: str) -> None:
    (violation,) = error.violations
    assert violation.field == field
    assert description in violation.description
    assert error.reason == "INVALID_REQUEST"
    assert str(error).startswith(f"INVALID_ARGUMENT INVALID_REQUEST: {field}: ")


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "field", "description"), WRONG, ids=[f"{each[0]}-{each[4][:40]}" for each in WRONG]
)
async def test_argument_is_named_and_nothing_is_sent(
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    field: str,
    description: str,
    side: Side,
    attachment: Any,
    depot: FakeDepot,
) -> None:
    del depot.requests[:]
    with pytest.raises(InvalidArgument) as raised:
        await side(getattr(attachment, method), *args, **kwargs)
    assert_names(raised.value, field, description)
    assert depot.requests == []


@pytest.mark.parametrize(("arguments", "field", "description"), ATTACHES, ids=[each[1] for each in ATTACHES])
async def test_attach_with_a_mistake_is_not_sent(
    arguments: dict[str, Any], field: str, description: str, side: Side, client: Any, depot: FakeDepot
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await side(client.attach, **{"instance_id": "engine-0", "model_name": "model", **arguments})
    assert_names(raised.value, field, description)
    assert depot.requests == []


async def test_groups_without_memory_need_no_regions(side: Side, client: Any, depot: FakeDepot) -> None:
    group = layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(SHAPE)
    attachment = await side(client.attach, instance_id="engine-0", model_name="model", groups=iter([group]))
    assert list(depot.last("AttachInstance").groups) == [group]
    await side(attachment.close)


def test_shared_buffer_that_is_attached_as_a_region_is_named() -> None:
    regions: Any
    with SharedBuffer.create(64) as buffer:
        regions = [buffer]
        with pytest.raises(InvalidArgument, match=r"regions\[0\]: is a SharedBuffer: pass its `region`"):
            attach_request("i", "m", [GROUP], regions, 1, 0)


@pytest.mark.parametrize("ids", [[-1, -1, 5, 6], np.array([-1, -1, 5, 6]), (-1, -1, 5, 6)])
def test_leading_ids_of_minus_one_are_absent_blocks(ids: Any) -> None:
    assert block_table(ids) == cache_pb2.BlockTable(block_ids=[5, 6], absent_blocks=2)
    assert block_table(ids, absent_blocks=3) == cache_pb2.BlockTable(block_ids=[5, 6], absent_blocks=5)


def test_table_of_absent_blocks_alone_is_a_table() -> None:
    assert block_table([-1, -1]) == cache_pb2.BlockTable(absent_blocks=2)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: token_prefix([1], cache_salt=5), "cache_salt: is 5, not a string"),  # type: ignore[arg-type]
        (lambda: hash_prefix([b"hash"], "16"), "hash_block_size: is '16'"),  # type: ignore[arg-type]
        (lambda: hash_prefix([5], 16), r"block_hashes"),  # type: ignore[list-item]
        (lambda: block_table([1], absent_blocks=-1), "absent_blocks: is -1"),
    ],
)
def test_prefix_and_table_name_their_own_fields(make: Any, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        make()


async def test_calls_of_a_closed_client_say_so(side: Side, depot: FakeDepot) -> None:
    client = side.client_class(depot.address)
    await side(client.close)
    for call in (
        lambda: side(client.get_status),
        lambda: side(client.lookup, "engine-0", "s", PROMPT),
        lambda: side(client.attach, instance_id="engine-0", model_name="model", groups=[]),
        lambda: side.all(client.watch_events()),
    ):
        with pytest.raises(Closed, match=f"the client of {depot.address} was closed") as raised:
            await call()
        assert raised.value.reason == "CLIENT_CLOSED"


@pytest.mark.parametrize("rpc", ["Lookup", "WatchEvents", "StoreInline"])
async def test_call_that_runs_when_its_client_is_closed_says_so(
    rpc: str, side: Side, attachment: Any, client: Any, depot: FakeDepot
) -> None:
    depot.hanging.add(rpc)
    call = {
        "Lookup": lambda: side(client.lookup, "engine-0", "s", PROMPT),
        "WatchEvents": lambda: side.all(client.watch_events()),
        "StoreInline": lambda: side(attachment.store_inline, "s", PROMPT, b"data"),
    }[rpc]
    running = asyncio.ensure_future(call())
    await eventually(lambda: any(name == rpc for name, _ in depot.requests))
    await side(client.close)
    with pytest.raises(Closed, match="was closed"):
        await running


async def test_cancelled_call_of_a_closing_client_is_still_cancelled(depot: FakeDepot) -> None:
    depot.hanging.add("GetStatus")
    client = AsyncDepotClient(depot.address)
    running = asyncio.ensure_future(client.get_status())
    await eventually(lambda: bool(depot.requests))
    running.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_calls_of_a_closed_attachment_say_so(side: Side, client: Any, depot: FakeDepot) -> None:
    attachment = await side(client.attach, instance_id="engine-0", model_name="model", groups=[])
    await side(attachment.close)
    del depot.requests[:]
    for method, args in (
        ("lookup", ("s", PROMPT)),
        ("store", ("s", PROMPT, [])),
        ("retrieve", ("s", "lease", [])),
        ("store_inline", ("s", PROMPT, b"")),
        ("retrieve_inline_into", ("s", "lease", bytearray())),
        ("release_lease", ("lease",)),
        ("end_session", ("s",)),
    ):
        with pytest.raises(Closed, match="the attachment of rank 0 of 'engine-0' was closed; attach again"):
            await side(getattr(attachment, method), *args)
    with pytest.raises(Closed, match="ATTACHMENT_CLOSED"):
        attachment.session("s")
    assert depot.requests == []


@pytest.mark.parametrize(
    ("rpc", "call"),
    [
        ("GetStatus", lambda side, client, _: side(client.get_status, timeout_seconds=0.05)),
        ("WatchEvents", lambda side, client, _: side.all(client.watch_events(timeout_seconds=0.05))),
        ("StoreInline", lambda side, _, rank: side(rank.store_inline, "s", PROMPT, b"x", timeout_seconds=0.05)),
        ("RetrieveInline", lambda side, _, rank: side.all(rank.retrieve_inline("s", "lease", timeout_seconds=0.05))),
    ],
)
async def test_deadline_names_the_method_the_address_and_the_limit(
    rpc: str, call: Any, side: Side, client: Any, attachment: Any, depot: FakeDepot
) -> None:
    depot.hanging.add(rpc)
    with pytest.raises(DepotError) as raised:
        await call(side, client, attachment)
    assert raised.value.message == f"{rpc} at {depot.address} did not end within its limit of 0.05 s"


async def test_deadline_of_an_attach_names_the_method_too(side: Side, client: Any, depot: FakeDepot) -> None:
    depot.hanging.add("AttachInstance")
    with pytest.raises(DepotError, match=rf"AttachInstance at {depot.address} did not end within its limit of 0.2 s"):
        await side(client.attach, instance_id="engine-0", model_name="model", groups=[], timeout_seconds=0.2)


@pytest.mark.parametrize("address", ["", None, 50051])
def test_address_that_is_no_text_is_refused(address: Any, side: Side) -> None:
    with pytest.raises(InvalidArgument, match=r"address: is .*, not `host:port`"):
        side.client_class(address)
