"""Calls on an event loop: a channel, its stubs, deadlines, and errors as `DepotError`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import grpc

from kvdepot import inline
from kvdepot.credentials import Credentials
from kvdepot.errors import client_closed
from kvdepot.rpc import CallDefaults, channel_arguments, rpc_of
from kvdepot.v1.admin_pb2_grpc import AdminServiceStub
from kvdepot.v1.cache_pb2 import RetrieveInlineRequest, StoreInlineRequest, StoreInlineResponse
from kvdepot.v1.cache_pb2_grpc import CacheServiceStub
from kvdepot.v1.observability_pb2_grpc import ObservabilityServiceStub
from kvdepot.wire import Piece, parsed_retrieve

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from kvdepot.v1.admin_pb2_grpc import AdminServiceAsyncStub
    from kvdepot.v1.cache_pb2_grpc import CacheServiceAsyncStub
    from kvdepot.v1.observability_pb2_grpc import ObservabilityServiceAsyncStub

InlineData: TypeAlias = "Buffer | Iterable[Buffer] | AsyncIterable[Buffer]"
"""One buffer, or several in a row."""

Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncCalls(CallDefaults):
    """One channel to the depot, for the event loop it was made on."""

    def __init__(
        self, address: str, credentials: Credentials | grpc.ChannelCredentials | None, timeout_seconds: float
    ) -> None:
        super().__init__(address, credentials, timeout_seconds)
        secure, options = channel_arguments(address, credentials)
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if secure is None
            else grpc.aio.secure_channel(address, secure, options)
        )
        self.cache: CacheServiceAsyncStub = CacheServiceStub(self._channel)
        self.observability: ObservabilityServiceAsyncStub = ObservabilityServiceStub(self._channel)
        self.admin: AdminServiceAsyncStub = AdminServiceStub(self._channel)
        self._store_inline: grpc.aio.StreamUnaryMultiCallable[bytes, StoreInlineResponse] = self._channel.stream_unary(
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

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_seconds: float | None,
        *,
        added_seconds: float = 0.0,
    ) -> Response:
        """Make a call; see `timeout`.

        Raises: DepotError, ValueError, OSError.
        """
        self.require_open()
        timeout = self.timeout(timeout_seconds, added_seconds=added_seconds)
        try:
            return await method(request, timeout=timeout, metadata=self.metadata())
        except grpc.RpcError as error:
            raise self.failure(error, rpc_of(request), timeout) from error
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise

    def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        deadline_seconds: float | None,
    ) -> AsyncGenerator[Response, None]:
        """Start a call, which is cancelled when the iterator is closed or collected. None is no deadline.

        Raises: Closed, OSError.
        """
        self.require_open()
        call = method(request, timeout=deadline_seconds, metadata=self.metadata())
        return self._responses(call, rpc_of(request), deadline_seconds)

    async def store_inline(
        self, header: StoreInlineRequest, data: InlineData, timeout_seconds: float | None
    ) -> StoreInlineResponse:
        """Send the header and all the data. An error of the data's iterator is raised here, and cancels the call.

        The depot may answer before it has read everything. A running write then fails. If grpc.aio sees the failure
        after the answer, it replaces the answer. So the writer is stopped when the answer comes.

        Raises: DepotError, ValueError, OSError.
        """
        self.require_open()
        timeout = self.timeout(timeout_seconds)
        call = self._store_inline(timeout=timeout, metadata=self.metadata())
        writer = asyncio.create_task(_write(call, _messages(header, data)))

        def stop_writing(_: object) -> None:
            writer.cancel()

        call.add_done_callback(stop_writing)
        try:
            await asyncio.wait([writer])
            if not writer.cancelled():
                writer.result()
            return await call
        except grpc.RpcError as error:
            raise self.failure(error, "StoreInline", timeout) from error
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise
        finally:
            call.cancel()
            writer.cancel()
            await asyncio.wait([writer])

    async def close(self) -> None:
        """Close the channel. Running calls fail with `Closed`."""
        self.is_closed = True
        await self._channel.close()

    async def _responses(
        self, call: grpc.aio.UnaryStreamCall[Request, Response], rpc: str, limit_seconds: float | None
    ) -> AsyncGenerator[Response, None]:
        try:
            async for response in call:
                yield response
        except grpc.RpcError as error:
            raise self.failure(error, rpc, limit_seconds) from error
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise
        finally:
            call.cancel()

    def _raise_if_closed(self) -> None:
        """Raise the error of a closed client, if that is what cancelled a call, and not its caller's task.

        Raises: Closed.
        """
        task = asyncio.current_task()
        if self.is_closed and not (task is not None and task.cancelling()):
            raise client_closed(self.address) from None


async def _messages(header: StoreInlineRequest, data: InlineData) -> AsyncGenerator[bytes, None]:
    yield header.SerializeToString()
    if isinstance(data, AsyncIterable):
        try:
            async for buffer in data:
                for message in inline.pieces(buffer):
                    yield message
        finally:  # immediately, not when it is collected
            if isinstance(data, AsyncGenerator):
                await data.aclose()
    else:
        for message in inline.messages(data):
            yield message


async def _write(call: grpc.aio.StreamUnaryCall[bytes, Response], messages: AsyncGenerator[bytes, None]) -> None:
    async with aclosing(messages):
        async for message in messages:
            try:
                await call.write(message)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call has ended: awaiting it shows how
                return
    with suppress(Exception):  # an error that grpc.aio does not export: the call has ended, awaiting it shows how
        await call.done_writing()
