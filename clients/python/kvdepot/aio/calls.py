"""Calls on an event loop: a channel, its stubs, deadlines, and errors as `DepotError`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, TypeVar

import grpc

from kvdepot import channel, trace
from kvdepot.credentials import Bearer, Credentials
from kvdepot.errors import depot_error
from kvdepot.pieces import Piece, parsed_retrieve
from kvdepot.v1.admin_pb2_grpc import AdminServiceStub
from kvdepot.v1.cache_pb2 import RetrieveInlineRequest, StoreInlineResponse
from kvdepot.v1.cache_pb2_grpc import CacheServiceStub
from kvdepot.v1.observability_pb2_grpc import ObservabilityServiceStub

if TYPE_CHECKING:
    from kvdepot.v1.admin_pb2_grpc import AdminServiceAsyncStub
    from kvdepot.v1.cache_pb2_grpc import CacheServiceAsyncStub
    from kvdepot.v1.observability_pb2_grpc import ObservabilityServiceAsyncStub

Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncCalls:
    """One channel to the depot, for the event loop it was made on."""

    def __init__(
        self, address: str, credentials: Credentials | grpc.ChannelCredentials | None, timeout_seconds: float
    ) -> None:
        self._timeout_seconds = channel.checked_timeout(timeout_seconds)
        self._channel = channel.opened_on_loop(address, credentials)
        self._bearer = Bearer(credentials) if isinstance(credentials, Credentials) else None
        self.cache: CacheServiceAsyncStub = CacheServiceStub(self._channel)
        self.store_inline: grpc.aio.StreamUnaryMultiCallable[bytes, StoreInlineResponse] = self._channel.stream_unary(
            "/kvdepot.v1.CacheService/StoreInline",
            response_deserializer=StoreInlineResponse.FromString,
        )
        self.retrieve_inline: grpc.aio.UnaryStreamMultiCallable[RetrieveInlineRequest, Piece] = (
            self._channel.unary_stream(
                "/kvdepot.v1.CacheService/RetrieveInline",
                request_serializer=RetrieveInlineRequest.SerializeToString,
                response_deserializer=parsed_retrieve,
            )
        )
        self.observability: ObservabilityServiceAsyncStub = ObservabilityServiceStub(self._channel)
        self.admin: AdminServiceAsyncStub = AdminServiceStub(self._channel)

    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What a call sends along: whose it is, and the caller's place in its trace."""
        if self._bearer is None:
            return trace.metadata()
        return (*self._bearer.metadata(), *(trace.metadata() or ()))

    def timeout(self, timeout_seconds: float | None, *, added_seconds: float = 0.0) -> float:
        """The caller's timeout, or else the default and ``added_seconds``."""
        if timeout_seconds is None:
            return self._timeout_seconds + added_seconds
        return channel.checked_timeout(timeout_seconds)

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float,  # noqa: ASYNC109 - the deadline rides on the call
    ) -> Response:
        try:
            return await method(request, timeout=timeout, metadata=self.metadata())
        except grpc.aio.AioRpcError as error:
            raise depot_error(error) from error

    def stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[Request, Response], request: Request, timeout: float | None
    ) -> AsyncGenerator[Response, None]:
        """Starts the call at once; it is cancelled when the iterator is closed or forgotten."""
        return _responses(method(request, timeout=timeout, metadata=self.metadata()))

    async def send(
        self,
        method: grpc.aio.StreamUnaryMultiCallable[Request, Response],
        requests: AsyncGenerator[Request, None],
        timeout: float,  # noqa: ASYNC109 - the deadline rides on the call
    ) -> Response:
        """Sends all the requests. What the iterator raises is raised here, and cancels the call.

        The depot may answer before it has read everything. A write that is under way then fails, and grpc.aio puts that
        failure in place of the answer if it is noticed second: so the writer is stopped the moment the answer comes.
        """
        call = method(timeout=timeout, metadata=self.metadata())
        writer = asyncio.create_task(_write(call, requests))

        def stop_writing(_: object) -> None:
            writer.cancel()

        call.add_done_callback(stop_writing)
        try:
            await asyncio.wait([writer])
            if not writer.cancelled():
                writer.result()
            return await call
        except grpc.aio.AioRpcError as error:
            raise depot_error(error) from error
        finally:
            call.cancel()
            writer.cancel()
            await asyncio.wait([writer])

    async def close(self) -> None:
        await self._channel.close()


async def _write(call: grpc.aio.StreamUnaryCall[Request, Response], requests: AsyncGenerator[Request, None]) -> None:
    async with aclosing(requests):
        async for request in requests:
            try:
                await call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call has ended: awaiting it tells how
                return
    with suppress(Exception):  # an error that grpc.aio does not export: the call has ended, awaiting it tells how
        await call.done_writing()


async def _responses(call: grpc.aio.UnaryStreamCall[Request, Response]) -> AsyncGenerator[Response, None]:
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        raise depot_error(error) from error
    finally:
        call.cancel()
