"""Spans of a real server, as a collector receives them: the depot's own within the engine's trace, and the calls'."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from kvdepot import AsyncDepotClient, DepotError, KvShape, SharedBuffer, requests
from kvdepot.layout import layouts
from kvdepot.v1.cache_pb2 import (
    LookupRequest,
    RetrieveInlineRequest,
    StoreInlineHeader,
    StoreInlineRequest,
)
from kvdepot.v1.cache_pb2_grpc import CacheServiceStub
from tests.e2e.collector import Collector, attributes, running_collector
from tests.e2e.servers import running_server
from tests.fakes.waiting import eventually

CHUNK_SIZE = 16
SHAPE = KvShape(num_layers=2, num_blocks=8, block_size=4, num_heads=2, head_size=8, dtype="float32")
LAYOUT = layouts.NL_X_TWO_NB_BS_NH_HS
TOKENS = list(range(2 * CHUNK_SIZE))
TRACE = 0xAB << 64 | 0xCD
SERVICE = "/kvdepot.v1.CacheService"


def traceparent(trace: int = TRACE, span: int = 0xEF) -> dict[str, Any]:
    """Return the traceparent that an engine adds to a call."""
    return {"metadata": (("traceparent", f"00-{trace:032x}-{span:016x}-01"),), "timeout": 20}


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with running_collector() as running:
        yield running


class Engine:
    """A client with raw stubs for calls with metadata."""

    def __init__(self, server: Any, client: AsyncDepotClient, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.client = client
        self.stub: Any = CacheServiceStub(channel)

    async def attach(self, buffer: SharedBuffer | None = None, *, rank: int = 0, world_size: int = 1) -> Any:
        return await self.client.attach(
            instance_id="pod",
            model_name="m",
            groups=[LAYOUT.from_shape(SHAPE) if buffer is not None else LAYOUT.without_memory(SHAPE)],
            regions=[buffer.region] if buffer is not None else [],
            rank=rank,
            world_size=world_size,
        )

    async def store(self, session_id: str, tokens: list[int], *, rank: int = 0, **call: Any) -> Any:
        tables = [range(len(tokens) // SHAPE.block_size)]
        return await self.stub.Store(requests.store("pod", rank, session_id, tokens, tables, 0, b""), **call)

    async def lookup(self, session_id: str, tokens: list[int], **call: Any) -> Any:
        return await self.stub.Lookup(requests.lookup("pod", session_id, tokens, 0, 0.0), **call)

    async def end(self, session_id: str) -> None:
        await self.client.end_session("pod", session_id)

    async def end_unknown(self, session_id: str) -> None:
        with pytest.raises(DepotError):
            await self.end(session_id)


@asynccontextmanager
async def traced_depot(collector: Collector, **changes: Any) -> AsyncIterator[Engine]:
    """Run a server that has sent all its spans when the block ends."""
    flags = {"enable_tracing": True, "otlp_endpoint": collector.endpoint, "disable_metrics": True, **changes}
    async with (
        running_server({"chunk_size": CHUNK_SIZE, **flags}) as server,
        AsyncDepotClient(server.addresses[0]) as client,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        yield Engine(server, client, channel)


@pytest.fixture
def buffer() -> Iterator[SharedBuffer]:
    with SharedBuffer.create(LAYOUT.size_bytes(SHAPE)) as shared:
        yield shared


def is_child(span: Span, parent: Span) -> bool:
    return (span.parent_span_id, span.trace_id) == (parent.span_id, parent.trace_id)


async def test_store_and_retrieve_are_in_the_engines_trace(collector: Collector, buffer: SharedBuffer) -> None:
    async with traced_depot(collector) as engine:
        await engine.attach(buffer)
        before = time.time_ns()
        await engine.store("writer", TOKENS, **traceparent())
        await engine.end("writer")
        answer = await engine.lookup("reader", TOKENS, **traceparent(TRACE + 1))
        tables = [range(len(TOKENS) // SHAPE.block_size)]
        request = requests.retrieve("pod", 0, "reader", answer.lease, tables, 0, b"")
        await engine.stub.Retrieve(request, **traceparent(TRACE + 1))
        await engine.end("reader")
        after = time.time_ns()

    writer, reader = collector.named("session")
    assert writer.trace_id == TRACE.to_bytes(16, "big")
    assert writer.parent_span_id == bytes(7) + b"\xef"
    assert reader.trace_id == (TRACE + 1).to_bytes(16, "big")
    store, lookup, retrieve = collector.one("store"), collector.one("lookup"), collector.one("retrieve")
    assert is_child(store, writer)
    assert is_child(lookup, reader)
    assert is_child(retrieve, reader)
    [link] = retrieve.links
    assert (link.trace_id, link.span_id) == (writer.trace_id, writer.span_id)
    assert attributes(link) == {"kvdepot.instance_id": "pod", "kvdepot.session_id": "writer"}
    to_l1, from_l1 = collector.named("transfer")
    assert is_child(to_l1, store)
    assert is_child(from_l1, retrieve)
    for span in collector.spans:
        assert before - 10**9 < span.start_time_unix_nano <= span.end_time_unix_nano < after + 10**9
        assert span.status.code == Status.STATUS_CODE_UNSET

    facts = attributes(store)
    assert facts["kvdepot.stored_tokens"] == len(TOKENS)
    assert facts["kvdepot.inline"] is False
    assert facts["kvdepot.outcome"] == "ok"
    assert attributes(reader)["kvdepot.reason"] == "requested"
    assert collector.resource["service.name"] == "kvdepot"
    assert collector.resource["service.version"]
    assert collector.resource["service.instance.id"]


async def test_each_call_has_a_span_in_the_callers_trace(collector: Collector) -> None:
    async with traced_depot(collector) as engine:
        await engine.attach()
        await engine.lookup("s", TOKENS, **traceparent())
        await engine.client.get_status()
    call = collector.one(f"{SERVICE}/Lookup")
    assert (call.trace_id, call.parent_span_id) == (TRACE.to_bytes(16, "big"), bytes(7) + b"\xef")
    assert attributes(call)["rpc.grpc.status_code"] == 0
    assert not collector.one("/kvdepot.v1.AdminService/GetStatus").parent_span_id
    assert not collector.named(f"{SERVICE}/AttachInstance")


def calls_of_sessions(collector: Collector) -> list[Span]:
    return [span for span in collector.spans if span.name.startswith(SERVICE) and "Detach" not in span.name]


async def test_without_a_callers_trace_all_calls_of_a_session_are_in_its_trace(
    collector: Collector, buffer: SharedBuffer
) -> None:
    malformed: dict[str, Any] = {"metadata": (("traceparent", "00-none-at-all"),), "timeout": 20}
    async with traced_depot(collector) as engine:
        attachment = await engine.attach(buffer)
        await engine.lookup("s", TOKENS)
        await engine.store("s", TOKENS, **malformed)
        answer = await engine.lookup("s", TOKENS)
        await attachment.release_lease(answer.lease)
        data = b"".join(
            [each.data async for each in attachment.retrieve_inline("s", (await engine.lookup("s", TOKENS)).lease)]
        )
        await attachment.store_inline("s", TOKENS, data)
        await engine.end("s")
        await engine.end_unknown("s")
    session = collector.one("session")
    calls = calls_of_sessions(collector)
    assert sorted(span.name.removeprefix(f"{SERVICE}/") for span in calls) == [
        *["EndSession", "EndSession", "Lookup", "Lookup", "Lookup"],
        *["ReleaseLease", "RetrieveInline", "Store", "StoreInline"],
    ]
    assert not session.parent_span_id
    assert all(is_child(span, session) for span in calls)
    assert {span.trace_id for span in collector.spans if "Detach" not in span.name} == {session.trace_id}
    assert all(span.kind == Span.SPAN_KIND_SERVER for span in calls)
    assert attributes(calls[0])["kvdepot.session_id"] == "s"
    assert attributes(calls[0])["rpc.service"] == "kvdepot.v1.CacheService"


async def test_each_life_of_a_session_id_is_a_trace(collector: Collector) -> None:
    async with traced_depot(collector) as engine:
        await engine.attach()
        for session_id in ("s", "s", "t"):
            await engine.lookup(session_id, TOKENS)
            await engine.end(session_id)
    sessions = {span.span_id for span in collector.named("session")}
    assert len(sessions) == len({span.trace_id for span in collector.spans if "Detach" not in span.name}) == 3
    calls = calls_of_sessions(collector)
    assert len(calls) == 6
    assert {span.parent_span_id for span in calls} == sessions


async def test_a_call_of_no_session_is_a_trace_of_its_own(collector: Collector) -> None:
    async with traced_depot(collector) as engine:
        await engine.client.list_instances()
        await engine.client.get_status()
    assert len({span.trace_id for span in collector.spans}) == 2
    assert not any(span.parent_span_id for span in collector.spans)


async def test_a_call_without_a_trace_does_not_inherit_that_of_the_call_before(collector: Collector) -> None:
    async with traced_depot(collector) as engine:
        await engine.attach()
        await engine.lookup("first", TOKENS, **traceparent())
        await engine.lookup("second", TOKENS)
    first, second = sorted(collector.named("session"), key=lambda span: span.start_time_unix_nano)
    assert first.trace_id == TRACE.to_bytes(16, "big")
    assert second.trace_id != first.trace_id
    assert not second.parent_span_id


async def test_ranks_at_once_and_stores_again_have_spans_of_their_own(
    collector: Collector, buffer: SharedBuffer
) -> None:
    async with traced_depot(collector) as engine:
        for rank in range(2):
            await engine.attach(buffer, rank=rank, world_size=2)
        for tokens in (TOKENS[:CHUNK_SIZE], TOKENS):
            await asyncio.gather(*(engine.store("s", tokens, rank=rank, **traceparent()) for rank in range(2)))
        await engine.end("s")
    stores = collector.named("store")
    assert sorted(
        (attributes(span)["kvdepot.rank"], attributes(span)["kvdepot.resident_tokens"]) for span in stores
    ) == [(0, 0), (0, CHUNK_SIZE), (1, 0), (1, CHUNK_SIZE)]
    assert all(is_child(span, collector.one("session")) for span in stores)
    assert {span.parent_span_id for span in collector.named("transfer")} == {span.span_id for span in stores}


async def test_inline_calls_are_traced_and_bring_their_bytes(collector: Collector) -> None:
    async with traced_depot(collector) as engine:
        attachment = await engine.attach()
        data = bytes(range(256)) * (2 * attachment.chunk_bytes // 256)
        await attachment.store_inline("s", TOKENS, data)
        answer = await engine.lookup("s", TOKENS)
        pieces = [piece.data async for piece in attachment.retrieve_inline("s", answer.lease)]
        assert b"".join(pieces) == data
        await engine.end("s")
    for name in ("StoreInline", "RetrieveInline"):
        assert attributes(collector.one(f"{SERVICE}/{name}"))["rpc.grpc.status_code"] == 0
    assert attributes(collector.one("store"))["kvdepot.inline"] is True
    assert attributes(collector.one("retrieve"))["kvdepot.retrieved_tokens"] == len(TOKENS)


async def test_calls_that_fail_are_recorded_as_they_were_answered(collector: Collector) -> None:
    async with traced_depot(collector) as engine:
        await engine.attach()
        for call, request in (
            (engine.stub.Lookup, LookupRequest(instance_id="pod")),
            (engine.stub.RetrieveInline, RetrieveInlineRequest(instance_id="unknown", session_id="s", lease_id="l")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                answer = call(request, timeout=20)
                await (answer.read() if hasattr(answer, "read") else answer)
            assert "grpc-status-details-bin" in dict(failure.value.trailing_metadata()), "the details are lost"
    assert attributes(collector.one(f"{SERVICE}/Lookup"))["rpc.grpc.status_code"] == 3  # INVALID_ARGUMENT
    assert attributes(collector.one(f"{SERVICE}/RetrieveInline"))["rpc.grpc.status_code"] == 5  # NOT_FOUND


async def test_a_bug_is_an_error_of_the_call(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced_depot(collector) as engine:
        await engine.attach()
        monkeypatch.setattr("service.rpc.cache.lookup", None)
        with pytest.raises(grpc.aio.AioRpcError):
            await engine.lookup("s", TOKENS)
    call = collector.one(f"{SERVICE}/Lookup")
    assert attributes(call)["rpc.grpc.status_code"] == 13  # INTERNAL
    assert call.status.code == Status.STATUS_CODE_ERROR


@pytest.mark.parametrize(("gives_up", "status_code"), [("cancels", 1), ("is late", 4)])
async def test_a_call_that_is_cut_off_is_recorded_so(collector: Collector, gives_up: str, status_code: int) -> None:
    async with traced_depot(collector) as engine:
        await engine.attach()
        depot = engine.server.depot
        header = StoreInlineHeader(instance_id="pod", session_id="writer", prefix=requests.token_prefix(TOKENS))
        store = engine.stub.StoreInline(timeout=20)
        await store.write(StoreInlineRequest(header=header))
        await store.write(StoreInlineRequest(data=b"1"))  # a chunk that is being stored: Lookup waits for it
        await eventually(lambda: any(depot.index.chunks()))
        lookup = engine.stub.Lookup(
            requests.lookup("pod", "reader", TOKENS, 0, 20.0), timeout=0.3 if gives_up == "is late" else 20
        )
        await eventually(lambda: depot.sessions.find("pod", "reader") is not None)
        if gives_up == "cancels":
            lookup.cancel()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await lookup
        await eventually(lambda: depot.sessions.find("pod", "reader").num_running == 0)
        store.cancel()
    assert attributes(collector.one(f"{SERVICE}/Lookup"))["rpc.grpc.status_code"] == status_code
    assert attributes(collector.one("lookup"))["kvdepot.outcome"] == "cancelled"


async def test_the_death_of_an_engine_ends_its_sessions_spans(collector: Collector) -> None:
    async with traced_depot(collector) as engine:
        attachment = await engine.attach()
        await engine.lookup("s", TOKENS)
        await attachment.close()
    session = collector.one("session")
    assert (session.status.code, session.status.message) == (Status.STATUS_CODE_ERROR, "instance detached")


async def test_a_collector_that_is_down_or_hangs_delays_the_end_by_seconds_at_most() -> None:
    with socket.socket() as hanging:  # accepts, and never answers
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        collector = Collector()
        collector.endpoint = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        async with asyncio.timeout(20):
            async with traced_depot(collector) as engine:
                await engine.attach()
                await engine.lookup("s", TOKENS)


async def test_nothing_is_traced_unless_it_is_asked_for(collector: Collector) -> None:
    async with traced_depot(collector, enable_tracing=False) as engine:
        await engine.attach()
        await engine.lookup("s", TOKENS, **traceparent())
    assert not collector.spans
