"""CacheService: decodes requests, calls the depot, and encodes its answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from kvdepot.v1 import cache_pb2, cache_pb2_grpc
from kvdepot.version import __version__
from kvdepot.wire import Piece, parsed_store, serialised_retrieve, store_data
from service.access.credentials import caller, has_certificate, visible_tenant
from service.depot.attach import Attacher
from service.depot.depot import Depot
from service.depot.hash_seeds import other_hash_seeds
from service.depot.lookup import lookup
from service.depot.pin_prefix import pin_prefix
from service.depot.prefetch import prefetch
from service.depot.retrieve import retrieve
from service.depot.retrieve_inline import MAX_PIECE_BYTES, retrieve_inline
from service.depot.running_transfer import to_the_end
from service.depot.store import store, store_inline
from service.depot.tenant_depots import TenantDepots
from service.depot.trace_context import note_session
from service.depot.values import StoreHeader
from service.errors import Draining, invalid
from service.rpc import decode, encode, pins
from service.rpc.wire import SHORT_BYTES, Unread
from telemetry.kinds import PinEnd

InlineMessage = cache_pb2.StoreInlineRequest | memoryview  # a memoryview is the data of a message


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """The service for engines. Each call uses the depot of its tenant.

    `draining` is set when the depots begin to shut down, `drained` when the transfers have ended.
    """

    def __init__(
        self, depots: TenantDepots, attacher: Attacher, draining: asyncio.Event, drained: asyncio.Event
    ) -> None:
        self._depots = depots
        self._attacher = attacher
        self._draining = draining
        self._drained = drained

    async def AttachInstance(  # type: ignore[override]  # sends with context.write, see Interceptor
        self,
        request: cache_pb2.AttachInstanceRequest,
        context: grpc.aio.ServicerContext[cache_pb2.AttachInstanceRequest, cache_pb2.AttachInstanceResponse],
    ) -> None:
        """Keep a rank attached until the client ends the stream, which cancels this, or until the depot has drained."""
        depot = self._depots.of_caller()
        peer_is_known = context.peer().startswith("unix:") or has_certificate(context)
        plain = decode.attach_request(request, peer_is_known=peer_is_known)
        async with self._attacher.attached(depot, plain) as attachment:
            response = cache_pb2.AttachInstanceResponse(
                chunk_size=attachment.chunk_size,
                chunk_bytes=attachment.chunk_bytes,
                server_version=__version__,
                transfer_backend=attachment.transfer_backend,
                notice=cache_pb2.NOTICE_ATTACHED,
                depot_incarnation=self._depots.incarnation,
                adopted_chunks=self._depots.num_adopted_chunks_by_tenant.get(depot.tenant, 0),
                wants_token_ids=depot.namer is not None,
                other_block_hash_seeds=other_hash_seeds(depot, attachment),
            )
            await context.write(response)
            await self._first_of(attachment.failed, attachment.closing, self._draining)
            if attachment.failure is not None:
                raise attachment.failure
            if not attachment.closing.is_set():
                response.notice = cache_pb2.NOTICE_DRAINING
                await context.write(response)
                await self._first_of(attachment.closing, self._drained)
        if attachment.closing.is_set():
            return
        raise Draining("the depot has shut down")

    async def DetachInstance(
        self, request: cache_pb2.DetachInstanceRequest, context: object
    ) -> cache_pb2.DetachInstanceResponse:
        await self._attacher.detach(self._depots.of_caller(), decode.instance_id(request), request.rank)
        return cache_pb2.DetachInstanceResponse()

    async def Lookup(self, request: cache_pb2.LookupRequest, context: object) -> cache_pb2.LookupResponse:
        return encode.lookup_response(await lookup(self._depots.of_caller(), decode.lookup_request(request)))

    async def Store(self, request: cache_pb2.StoreRequest, context: object) -> cache_pb2.StoreResponse:
        return encode.store_response(
            await store(self._depots.of_caller(), decode.store_request(request)), cache_pb2.StoreResponse
        )

    async def Retrieve(
        self,
        request: cache_pb2.RetrieveRequest,
        context: grpc.aio.ServicerContext[cache_pb2.RetrieveRequest, cache_pb2.RetrieveResponse],
    ) -> cache_pb2.RetrieveResponse:
        answer = await retrieve(self._depots.of_caller(), decode.retrieve_request(request, context.time_remaining()))
        return encode.retrieve_response(answer)

    async def ReleaseLease(
        self, request: cache_pb2.ReleaseLeaseRequest, context: object
    ) -> cache_pb2.ReleaseLeaseResponse:
        if not request.lease_id:
            raise invalid("lease_id", "is missing")
        depot = self._depots.of_caller()
        lease = depot.leases.find(request.lease_id)
        if lease is not None:
            note_session(lease.instance_id, lease.session_id)
        await depot.lifetimes.release_lease(request.lease_id)
        return cache_pb2.ReleaseLeaseResponse()

    async def StoreInline(
        self, request_iterator: AsyncIterator[InlineMessage], context: object
    ) -> cache_pb2.StoreInlineResponse:
        depot = self._depots.of_caller()
        header = await _header(depot, request_iterator)
        answer = await store_inline(depot, header, _pieces(request_iterator))
        return encode.store_response(answer, cache_pb2.StoreInlineResponse)

    async def RetrieveInline(  # type: ignore[override]  # sends with context.write, see Interceptor
        self,
        request: cache_pb2.RetrieveInlineRequest,
        context: grpc.aio.ServicerContext[cache_pb2.RetrieveInlineRequest, Piece],
    ) -> None:
        async def send(data: memoryview, chunk_index: int, offset_bytes: int) -> None:
            await context.write(Piece(data, chunk_index, offset_bytes))

        await retrieve_inline(self._depots.of_caller(), decode.retrieve_inline_request(request), send)

    async def EndSession(self, request: cache_pb2.EndSessionRequest, context: object) -> cache_pb2.EndSessionResponse:
        session = await self._depots.of_caller().lifetimes.end_session(*decode.session_ids(request))
        return cache_pb2.EndSessionResponse(summary=encode.session_summary(session, caller.get().tenant.name))

    async def PinPrefix(self, request: cache_pb2.PinPrefixRequest, context: object) -> cache_pb2.PinPrefixResponse:
        depot = self._depots.of_caller()
        return pins.pin_response(await pin_prefix(depot, pins.pin_request(request)), depot)

    async def UnpinPrefix(
        self, request: cache_pb2.UnpinPrefixRequest, context: object
    ) -> cache_pb2.UnpinPrefixResponse:
        tenant = visible_tenant(request.tenant) if request.tenant else caller.get().tenant.name
        pin_id = pins.unpin_request(request)
        depot = self._depots.named(tenant)
        pin = depot.pins.find(pin_id) if depot is not None else None
        if depot is None or pin is None:
            return cache_pb2.UnpinPrefixResponse()
        response = cache_pb2.UnpinPrefixResponse(pin=pins.pin_message(pin, depot))
        unpinned = depot.pins.end(pin, PinEnd.UNPINNED)
        if unpinned is not None:
            await to_the_end(unpinned)
        return response

    async def ListPins(self, request: cache_pb2.ListPinsRequest, context: object) -> cache_pb2.ListPinsResponse:
        return await pins.list_pins(self._depots, request, visible_tenant(request.tenant))

    async def Prefetch(self, request: cache_pb2.PrefetchRequest, context: object) -> cache_pb2.PrefetchResponse:
        return pins.prefetch_response(await prefetch(self._depots.of_caller(), pins.prefetch_request(request)))

    @staticmethod
    async def _first_of(*events: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def inline_handlers(servicer: CacheServicer) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Return the handlers of the inline RPCs, whose pieces come and go without protobuf's copies of their bytes."""
    return {
        "StoreInline": grpc.stream_unary_rpc_method_handler(
            servicer.StoreInline,
            request_deserializer=_inline_message,
            response_serializer=cache_pb2.StoreInlineResponse.SerializeToString,
        ),
        "RetrieveInline": grpc.unary_stream_rpc_method_handler(
            servicer.RetrieveInline,
            request_deserializer=cache_pb2.RetrieveInlineRequest.FromString,
            response_serializer=serialised_retrieve,
        ),
    }


async def _header(depot: Depot, messages: AsyncIterator[InlineMessage]) -> StoreHeader:
    first = await depot.bounded(anext(messages, None), "no header")
    if not isinstance(first, cache_pb2.StoreInlineRequest) or first.WhichOneof("payload") != "header":
        raise invalid("header", "is not the first message of the stream")
    return decode.store_header(first.header, "header.")


def _inline_message(wire: bytes) -> InlineMessage | Unread[cache_pb2.StoreInlineRequest]:
    if len(wire) <= SHORT_BYTES:
        return parsed_store(wire)
    data = store_data(wire)
    return data if data is not None else Unread(cache_pb2.StoreInlineRequest, wire)


async def _pieces(messages: AsyncIterator[InlineMessage]) -> AsyncIterator[memoryview]:
    async for message in messages:
        if isinstance(message, cache_pb2.StoreInlineRequest) and message.WhichOneof("payload") == "data":
            message = memoryview(message.data)
        if not isinstance(message, memoryview):
            raise invalid("header", "came a second time, or the message is empty")
        if not 1 <= len(message) <= MAX_PIECE_BYTES:
            raise invalid("data", f"has {len(message)} bytes, not 1 to {MAX_PIECE_BYTES}")
        yield message
    # grpc.aio ends the iterator of a cancelled stream a moment before it cancels the handler.
    await asyncio.sleep(0)
