"""Calls that block: a channel, its stubs, deadlines, and errors as `DepotError`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
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
    from grpc import _CallIterator

Request = TypeVar("Request")
Response = TypeVar("Response")


class Calls:
    """One channel to the depot. Safe to share among threads."""

    def __init__(
        self, address: str, credentials: Credentials | grpc.ChannelCredentials | None, timeout_seconds: float
    ) -> None:
        self._timeout_seconds = channel.checked_timeout(timeout_seconds)
        self._channel = channel.opened(address, credentials)
        self._bearer = Bearer(credentials) if isinstance(credentials, Credentials) else None
        self.cache = CacheServiceStub(self._channel)
        self.store_inline: grpc.StreamUnaryMultiCallable[bytes, StoreInlineResponse] = self._channel.stream_unary(
            "/kvdepot.v1.CacheService/StoreInline",
            response_deserializer=StoreInlineResponse.FromString,
        )
        self.retrieve_inline: grpc.UnaryStreamMultiCallable[RetrieveInlineRequest, Piece] = self._channel.unary_stream(
            "/kvdepot.v1.CacheService/RetrieveInline",
            request_serializer=RetrieveInlineRequest.SerializeToString,
            response_deserializer=parsed_retrieve,
        )
        self.observability = ObservabilityServiceStub(self._channel)
        self.admin = AdminServiceStub(self._channel)

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

    def unary(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout: float
    ) -> Response:
        try:
            return method(request, timeout=timeout, metadata=self.metadata())
        except grpc.RpcError as error:
            raise depot_error(error) from error

    def stream(
        self, method: grpc.UnaryStreamMultiCallable[Request, Response], request: Request, timeout: float | None
    ) -> Generator[Response, None, None]:
        """Starts the call at once; it is cancelled when the iterator is closed or forgotten."""
        return _responses(method(request, timeout=timeout, metadata=self.metadata()))

    def send(
        self, method: grpc.StreamUnaryMultiCallable[Request, Response], requests: Iterator[Request], timeout: float
    ) -> Response:
        """Sends all the requests. What the iterator raises is raised here, and cancels the call."""
        source = _Source(requests)
        try:
            return method(source, timeout=timeout, metadata=self.metadata())
        except grpc.RpcError as error:
            if source.failure is not None:
                raise source.failure from None
            raise depot_error(error) from error

    def close(self) -> None:
        self._channel.close()


class _Source(Iterator[Request]):
    """Keeps what the iterator raised: gRPC, which iterates in a thread of its own, only logs it."""

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests
        self.failure: Exception | None = None

    def __next__(self) -> Request:
        try:
            return next(self._requests)
        except StopIteration:
            raise
        except Exception as failure:
            self.failure = failure
            raise


def _responses(call: _CallIterator[Response]) -> Generator[Response, None, None]:
    try:
        yield from call
    except grpc.RpcError as error:
        raise depot_error(error) from error
    finally:
        call.cancel()
