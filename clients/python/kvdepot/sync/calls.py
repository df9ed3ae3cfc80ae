"""Calls that block: a channel, its stubs, deadlines, and errors as `DepotError`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
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
    from grpc import _CallIterator
    from typing_extensions import Buffer

InlineData: TypeAlias = "Buffer | Iterable[Buffer]"
"""One buffer, or several in a row."""

Request = TypeVar("Request")
Response = TypeVar("Response")


class Calls(CallDefaults):
    """One channel to the depot. Safe to share among threads."""

    def __init__(
        self, address: str, credentials: Credentials | grpc.ChannelCredentials | None, timeout_seconds: float
    ) -> None:
        super().__init__(address, credentials, timeout_seconds)
        secure, options = channel_arguments(address, credentials)
        self._channel = (
            grpc.insecure_channel(address, options) if secure is None else grpc.secure_channel(address, secure, options)
        )
        self.cache = CacheServiceStub(self._channel)
        self.observability = ObservabilityServiceStub(self._channel)
        self.admin = AdminServiceStub(self._channel)
        self._store_inline: grpc.StreamUnaryMultiCallable[bytes, StoreInlineResponse] = self._channel.stream_unary(
            "/kvdepot.v1.CacheService/StoreInline",
            response_deserializer=StoreInlineResponse.FromString,
        )
        self.retrieve_inline: grpc.UnaryStreamMultiCallable[RetrieveInlineRequest, Piece] = self._channel.unary_stream(
            "/kvdepot.v1.CacheService/RetrieveInline",
            request_serializer=RetrieveInlineRequest.SerializeToString,
            response_deserializer=parsed_retrieve,
        )

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
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
            return method(request, timeout=timeout, metadata=self.metadata())
        except grpc.RpcError as error:
            raise self.failure(error, rpc_of(request), timeout) from error
        except ValueError:
            self._raise_if_closed()
            raise

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        deadline_seconds: float | None,
    ) -> Generator[Response, None, None]:
        """Start a call, which is cancelled when the iterator is closed or collected. None is no deadline.

        Raises: Closed, OSError.
        """
        self.require_open()
        call = method(request, timeout=deadline_seconds, metadata=self.metadata())
        return self._responses(call, rpc_of(request), deadline_seconds)

    def store_inline(
        self, header: StoreInlineRequest, data: InlineData, timeout_seconds: float | None
    ) -> StoreInlineResponse:
        """Send the header and all the data. An error of the data's iterator is raised here, and cancels the call.

        Raises: DepotError, ValueError, OSError.
        """
        self.require_open()
        messages = _Messages(header, data)
        timeout = self.timeout(timeout_seconds)
        try:
            return self._store_inline(messages, timeout=timeout, metadata=self.metadata())
        except grpc.RpcError as error:
            if messages.failure is not None:
                raise messages.failure from None
            raise self.failure(error, "StoreInline", timeout) from error

    def close(self) -> None:
        """Close the channel. Running calls fail with `Closed`."""
        self.is_closed = True
        self._channel.close()

    def _responses(
        self, call: _CallIterator[Response], rpc: str, limit_seconds: float | None
    ) -> Generator[Response, None, None]:
        try:
            yield from call
        except grpc.RpcError as error:
            raise self.failure(error, rpc, limit_seconds) from error
        finally:
            call.cancel()

    def _raise_if_closed(self) -> None:
        """Raise the error of a closed client, if another thread closed it just before a call began.

        Raises: Closed.
        """
        if self.is_closed:
            raise client_closed(self.address) from None


class _Messages(Iterator[bytes]):
    """The messages of an inline store. `failure` keeps what the data's iterator raised.

    gRPC, which iterates in a thread of its own, only logs it.
    """

    def __init__(self, header: StoreInlineRequest, data: InlineData) -> None:
        self._messages = _messages(header, data)
        self.failure: Exception | None = None

    def __next__(self) -> bytes:
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except Exception as failure:
            self.failure = failure
            raise


def _messages(header: StoreInlineRequest, data: InlineData) -> Iterator[bytes]:
    yield header.SerializeToString()
    yield from inline.messages(data)
