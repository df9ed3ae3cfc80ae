"""Each call sends its arguments, ends in time, and is the same on both clients."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kvdepot import (
    AsyncAttachment,
    AsyncDepotClient,
    AsyncSession,
    Attachment,
    DepotClient,
    DepotError,
    Session,
    allocation_record,
    block_table,
    hash_prefix,
    token_prefix,
)
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from tests.clients.conftest import Side
from tests.fakes.depot import FakeDepot

CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], Any]] = {
    "Lookup": (
        "lookup",
        ("engine-0", "session", [1, 2]),
        {"computed_tokens": 3, "max_wait_seconds": 1.5, "prefill_tokens_per_second": 2000.5},
        cache_pb2.LookupRequest(
            instance_id="engine-0",
            session_id="session",
            prefix=cache_pb2.Prefix(token_ids=[1, 2]),
            computed_tokens=3,
            max_wait=Duration(seconds=1, nanos=500_000_000),
            prefill_tokens_per_second=2000.5,
        ),
    ),
    "ReleaseLease": ("release_lease", ("lease",), {}, cache_pb2.ReleaseLeaseRequest(lease_id="lease")),
    "EndSession": (
        "end_session",
        ("engine-0", "session"),
        {},
        cache_pb2.EndSessionRequest(instance_id="engine-0", session_id="session"),
    ),
    "ReportBlockAllocation": (
        "report_block_allocation",
        ("engine-0", "model", 16, [allocation_record("session", block_ids=[4], token_ids=[5], resumed=True)]),
        {},
        observability_pb2.ReportBlockAllocationRequest(
            instance_id="engine-0",
            model_name="model",
            block_size=16,
            records=[
                observability_pb2.BlockAllocationRecord(
                    session_id="session", block_ids=[4], token_ids=[5], resumed=True
                )
            ],
        ),
    ),
    "ListSessions": (
        "list_sessions",
        (),
        {"instance_id": "engine-0", "page_size": 7, "page_token": "page"},
        observability_pb2.ListSessionsRequest(instance_id="engine-0", page_size=7, page_token="page"),
    ),
    "GetSession": (
        "get_session",
        ("engine-0", "session"),
        {},
        observability_pb2.GetSessionRequest(instance_id="engine-0", session_id="session"),
    ),
    "ExplainPrefix": (
        "explain_prefix",
        ([1, 2],),
        {"model_name": "model", "tenant": "red"},
        observability_pb2.ExplainPrefixRequest(
            model_name="model", prefix=cache_pb2.Prefix(token_ids=[1, 2]), tenant="red"
        ),
    ),
    "GetActivity": (
        "get_activity",
        (),
        {"after": Timestamp(seconds=7), "resolution": observability_pb2.ACTIVITY_RESOLUTION_TEN_SECONDS},
        observability_pb2.GetActivityRequest(
            after=Timestamp(seconds=7), resolution=observability_pb2.ACTIVITY_RESOLUTION_TEN_SECONDS
        ),
    ),
    "GetStatus": ("get_status", (), {}, admin_pb2.GetStatusRequest()),
    "ListInstances": ("list_instances", (), {}, admin_pb2.ListInstancesRequest()),
    "GetHitCurve": (
        "get_hit_curve",
        (),
        {"window_seconds": 3_600.0, "tenant": "red", "model_name": "model"},
        admin_pb2.GetHitCurveRequest(window=Duration(seconds=3_600), tenant="red", model_name="model"),
    ),
    "ClearCache": (
        "clear_cache",
        (),
        {"model_name": "model", "cache_salt": "", "force": True},
        admin_pb2.ClearCacheRequest(model_name="model", cache_salt="", force=True),
    ),
    "SetLogLevel": (
        "set_log_level",
        ("Debug",),
        {"logger": "service.rpc", "for_seconds": 600.0},
        admin_pb2.SetLogLevelRequest(
            level=admin_pb2.LOG_LEVEL_DEBUG, logger="service.rpc", duration=Duration(seconds=600)
        ),
    ),
}
ON_ATTACHMENT: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], Any]] = {
    "Lookup": (
        "lookup",
        ("session", hash_prefix([b"hash"], 16, cache_salt="salt", adapter="lora")),
        {"computed_tokens": 3, "max_wait_seconds": 1.5, "prefill_tokens_per_second": 2000.5},
        cache_pb2.LookupRequest(
            instance_id="engine-0",
            session_id="session",
            prefix=cache_pb2.Prefix(block_hashes=[b"hash"], hash_block_size=16, cache_salt="salt", adapter="lora"),
            computed_tokens=3,
            max_wait=Duration(seconds=1, nanos=500_000_000),
            prefill_tokens_per_second=2000.5,
        ),
    ),
    "Store": (
        "store",
        (
            "session",
            token_prefix([1, 2], cache_salt="salt", adapter="lora"),
            [[3, 4], np.array([5]), block_table(np.array([6]), absent_blocks=7)],
        ),
        {"start_token": 8, "ready_event": b"event"},
        cache_pb2.StoreRequest(
            instance_id="engine-0",
            rank=1,
            session_id="session",
            prefix=cache_pb2.Prefix(token_ids=[1, 2], cache_salt="salt", adapter="lora"),
            start_token=8,
            block_tables=[
                cache_pb2.BlockTable(block_ids=[3, 4]),
                cache_pb2.BlockTable(block_ids=[5]),
                cache_pb2.BlockTable(block_ids=[6], absent_blocks=7),
            ],
            ready_event=b"event",
        ),
    ),
    "Retrieve": (
        "retrieve",
        ("session", cache_pb2.Lease(lease_id="lease"), [[3, 4], block_table([], absent_blocks=2)]),
        {"skip_tokens": 16, "ready_event": b"event", "accept_partial": True},
        cache_pb2.RetrieveRequest(
            instance_id="engine-0",
            rank=1,
            session_id="session",
            lease_id="lease",
            block_tables=[cache_pb2.BlockTable(block_ids=[3, 4]), cache_pb2.BlockTable(absent_blocks=2)],
            skip_tokens=16,
            ready_event=b"event",
            accept_partial=True,
        ),
    ),
    "ReleaseLease": (
        "release_lease",
        (cache_pb2.Lease(lease_id="lease"),),
        {},
        cache_pb2.ReleaseLeaseRequest(lease_id="lease"),
    ),
    "EndSession": (
        "end_session",
        ("session",),
        {},
        cache_pb2.EndSessionRequest(instance_id="engine-0", session_id="session"),
    ),
}


@pytest.mark.parametrize("rpc", CALLS)
async def test_call_of_the_client_sends_its_arguments_with_the_default_deadline(
    rpc: str, side: Side, client: Any, depot: FakeDepot
) -> None:
    method, args, kwargs, expected = CALLS[rpc]
    await side(getattr(client, method), *args, **kwargs)
    assert depot.last(rpc) == expected
    assert 0 < depot.deadlines[rpc] - kwargs.get("max_wait_seconds", 0) < 31  # gRPC rounds it up a little


@pytest.mark.parametrize("rpc", ON_ATTACHMENT)
async def test_call_of_an_attachment_adds_instance_and_rank(
    rpc: str, side: Side, client: Any, depot: FakeDepot
) -> None:
    method, args, kwargs, expected = ON_ATTACHMENT[rpc]
    attachment = await side(client.attach, instance_id="engine-0", model_name="model", groups=[], world_size=2, rank=1)
    await side(getattr(attachment, method), *args, **kwargs)
    assert depot.last(rpc) == expected
    await side(attachment.close)


async def test_lookup_without_a_wait_requests_none(side: Side, client: Any, depot: FakeDepot) -> None:
    await side(client.lookup, "engine-0", "session", [1])
    assert not depot.last("Lookup").HasField("max_wait")


async def test_deadline_of_lookup_includes_the_wait(side: Side, client: Any, depot: FakeDepot) -> None:
    await side(client.lookup, "engine-0", "session", [1], max_wait_seconds=100.0)
    deadline = depot.deadlines["Lookup"]
    assert deadline is not None
    assert deadline > 100


@pytest.mark.parametrize("rpc", CALLS)
async def test_call_of_the_client_ends_with_its_own_deadline(
    rpc: str, side: Side, client: Any, depot: FakeDepot
) -> None:
    depot.hanging.add(rpc)
    method, args, kwargs, _ = CALLS[rpc]
    with pytest.raises(DepotError) as failed:
        await side(getattr(client, method), *args, **kwargs, timeout_seconds=0.05)
    assert failed.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failed.value.reason == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("rpc", ON_ATTACHMENT)
async def test_call_of_an_attachment_ends_with_its_own_deadline(
    rpc: str, side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.hanging.add(rpc)
    method, args, kwargs, _ = ON_ATTACHMENT[rpc]
    with pytest.raises(DepotError, match="DEADLINE_EXCEEDED"):
        await side(getattr(attachment, method), *args, **kwargs, timeout_seconds=0.05)


async def test_client_timeout_is_the_default_of_its_calls(side: Side, depot: FakeDepot) -> None:
    depot.hanging.add("GetStatus")
    client = side.client_class(depot.address, timeout_seconds=0.05)
    with pytest.raises(DepotError, match="DEADLINE_EXCEEDED"):
        await side(client.get_status)
    await side(client.close)


@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan")])
async def test_timeout_that_never_ends_is_refused(seconds: float, side: Side, client: Any) -> None:
    with pytest.raises(ValueError, match="timeout_seconds"):
        await side(client.get_status, timeout_seconds=seconds)
    with pytest.raises(ValueError, match="timeout_seconds"):
        side.client_class("127.0.0.1:1", timeout_seconds=seconds)


async def test_events_are_watched_until_the_iterator_is_closed(side: Side, client: Any, depot: FakeDepot) -> None:
    events = client.watch_events(event_types=["StoreFinished"], instance_id="engine-0", session_id="session")
    assert (await side.first(events)).event.type == "StoreFinished"
    assert depot.ended.wait(10)
    assert depot.deadlines["WatchEvents"] is None
    assert depot.last("WatchEvents") == observability_pb2.WatchEventsRequest(
        event_types=["StoreFinished"], instance_id="engine-0", session_id="session"
    )


async def test_watch_that_has_a_timeout_ends_with_it(side: Side, client: Any, depot: FakeDepot) -> None:
    depot.hanging.add("WatchEvents")
    with pytest.raises(DepotError, match="DEADLINE_EXCEEDED"):
        await side.all(client.watch_events(timeout_seconds=0.05))


async def test_unix_socket_is_an_address(side: Side, tmp_path: Path) -> None:
    depot = FakeDepot()
    depot.start(f"unix:{tmp_path}/depot.sock")
    client = side.client_class(depot.address)
    assert (await side(client.get_status)).version == "1.2.3"
    await side(client.close)
    depot.stop()


async def test_environment_proxy_is_not_used(side: Side, depot: FakeDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    client = side.client_class(depot.address)
    assert (await side(client.get_status)).version == "1.2.3"
    await side(client.close)


async def test_answer_of_more_than_four_mebibytes_is_received(side: Side, client: Any, depot: FakeDepot) -> None:
    depot.next_page_token = "x" * (5 << 20)
    assert (await side(client.list_sessions)).next_page_token == depot.next_page_token


@pytest.mark.parametrize(
    ("blocking", "on_loop"),
    [(DepotClient, AsyncDepotClient), (Attachment, AsyncAttachment), (Session, AsyncSession)],
)
def test_both_clients_have_the_same_methods_and_signatures(blocking: type, on_loop: type) -> None:
    def public(kind: type) -> dict[str, Any]:
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(member).parameters.values()]
            if callable(member)
            else type(member)
            for name, member in inspect.getmembers(kind)
            if not name.startswith("_")
        }

    assert public(blocking) == public(on_loop)
