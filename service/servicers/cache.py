"""CacheService: messages in, messages out; what happens is in service/attach, lookup, store and retrieve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from kvdepot.v1 import cache_pb2, cache_pb2_grpc
from service import __version__
from service.attach import Attaching
from service.depot import Depot
from service.depots import Depots
from service.errors import Draining, TransferFailed, invalid
from service.lookup import lookup
from service.requests import StoreHeader
from service.retrieve import MAX_PIECE_BYTES, Piece, retrieve, retrieve_inline
from service.security.callers import caller, has_certificate
from service.servicers import decode, encode
from service.store import store, store_inline


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """Serves engines, each from its tenant's depot.

    `draining` is set when the depots begin to shut down, `drained` when transfers are done.
    """

    def __init__(self, depots: Depots, attaching: Attaching, draining: asyncio.Event, drained: asyncio.Event) -> None:
        self._depots = depots
        self._attaching = attaching
        self._draining = draining
        self._drained = drained

    async def AttachInstance(  # type: ignore[override]  # sends with context.write, see Boundary
        self,
        request: cache_pb2.AttachInstanceRequest,
        context: grpc.aio.ServicerContext[cache_pb2.AttachInstanceRequest, cache_pb2.AttachInstanceResponse],
    ) -> None:
        """The stream is the attachment: it ends by cancellation when the client is gone, or when the depot drains."""
        depot = self._depots.of_caller()
        peer_is_known = context.peer().startswith("unix:") or has_certificate(context)
        plain = decode.attach_request(request, peer_is_known=peer_is_known)
        async with self._attaching.attached(depot, plain) as attachment:
            response = cache_pb2.AttachInstanceResponse(
                chunk_size=depot.limits.chunk_size,
                chunk_bytes=attachment.chunk_bytes,
                server_version=__version__,
                transfer_backend=attachment.transfer_backend,
                notice=cache_pb2.NOTICE_ATTACHED,
            )
            await context.write(response)
            await self._first_of(attachment.failed, self._draining)
            if attachment.failed.is_set():
                raise TransferFailed("the device failed while it moved this rank's bytes: attach again")
            response.notice = cache_pb2.NOTICE_DRAINING
            await context.write(response)
            await self._drained.wait()
        raise Draining("the depot has shut down")

    async def Lookup(self, request: cache_pb2.LookupRequest, context: object) -> cache_pb2.LookupResponse:
        return encode.lookup_response(await lookup(self._depots.of_caller(), decode.lookup_request(request)))

    async def Store(self, request: cache_pb2.StoreRequest, context: object) -> cache_pb2.StoreResponse:
        return encode.store_response(await store(self._depots.of_caller(), decode.store_request(request)))

    async def Retrieve(self, request: cache_pb2.RetrieveRequest, context: object) -> cache_pb2.RetrieveResponse:
        answer = await retrieve(self._depots.of_caller(), decode.retrieve_request(request))
        return cache_pb2.RetrieveResponse(
            retrieved_tokens=answer.retrieved_tokens,
            retrieved_bytes=answer.retrieved_bytes,
            l1_tokens=answer.retrieved_tokens,
        )

    async def ReleaseLease(
        self, request: cache_pb2.ReleaseLeaseRequest, context: object
    ) -> cache_pb2.ReleaseLeaseResponse:
        if not request.lease_id:
            raise invalid("lease_id", "is missing")
        await self._depots.of_caller().release_lease(request.lease_id)
        return cache_pb2.ReleaseLeaseResponse()

    async def StoreInline(
        self, request_iterator: AsyncIterator[cache_pb2.StoreInlineRequest], context: object
    ) -> cache_pb2.StoreInlineResponse:
        depot = self._depots.of_caller()
        header = await _header(depot, request_iterator)
        return encode.store_inline_response(await store_inline(depot, header, _pieces(request_iterator)))

    async def RetrieveInline(  # type: ignore[override]  # sends with context.write, see Boundary
        self,
        request: cache_pb2.RetrieveInlineRequest,
        context: grpc.aio.ServicerContext[cache_pb2.RetrieveInlineRequest, cache_pb2.RetrieveInlineResponse],
    ) -> None:
        async def send(piece: Piece) -> None:
            await context.write(
                cache_pb2.RetrieveInlineResponse(
                    data=bytes(piece.data), chunk_index=piece.chunk_index, offset_bytes=piece.offset_bytes
                )
            )

        await retrieve_inline(self._depots.of_caller(), decode.retrieve_inline_request(request), send)

    async def EndSession(self, request: cache_pb2.EndSessionRequest, context: object) -> cache_pb2.EndSessionResponse:
        session = await self._depots.of_caller().end_session(*decode.session_ids(request))
        return cache_pb2.EndSessionResponse(summary=encode.session_summary(session, caller.get().tenant.name))

    @staticmethod
    async def _first_of(*events: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


async def _header(depot: Depot, messages: AsyncIterator[cache_pb2.StoreInlineRequest]) -> StoreHeader:
    first = await depot.bounded(anext(messages, None), "no header")
    if first is None or first.WhichOneof("payload") != "header":
        raise invalid("header", "is not the first message of the stream")
    return decode.store_header(first.header, "header.")


async def _pieces(messages: AsyncIterator[cache_pb2.StoreInlineRequest]) -> AsyncIterator[bytes]:
    async for message in messages:
        if message.WhichOneof("payload") != "data":
            raise invalid("header", "came a second time, or the message is empty")
        if not 1 <= len(message.data) <= MAX_PIECE_BYTES:
            raise invalid("data", f"has {len(message.data)} bytes, not 1 to {MAX_PIECE_BYTES}")
        yield message.data
    # grpc.aio ends the iterator of a cancelled stream a moment before it cancels the handler.
    await asyncio.sleep(0)
