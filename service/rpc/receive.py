"""How requests are received: when the boundary asks for them, and not before it knows who calls.

gRPC receives the request of a call before the call can be looked at. Of a stream of requests it receives nothing that
was not asked for. So to gRPC every request is a stream, of which a call with one request takes one message. Messages
are read from the context: the iterator that gRPC offers keeps the last one for as long as it lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from service.access.credentials import Context
from service.depot.slices import Slices
from service.errors import NoMessage, StreamStalled, TooManyBytes
from service.rpc.inflight_bytes import Place
from service.rpc.wire import leaving_long_ones, whole

Behavior = Callable[..., Any]
MAX_ID_CHARS = 256


@dataclass(slots=True)
class Asked:
    """What is known of a call that may be refused. It holds nothing large: it may outlive the call."""

    instance_id: str = ""

    def note(self, message: Any) -> None:
        """Note whom a message is from."""
        header = getattr(message, "header", message)
        self.instance_id = self.instance_id or getattr(header, "instance_id", "")[:MAX_ID_CHARS]


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method: its behavior, and how its requests are received."""

    name: str
    request_streaming: bool
    behavior: Behavior
    _parse: Callable[[bytes], Any]
    _slices: Slices

    @classmethod
    def of(cls, method: str, handler: Any, slices: Slices) -> Rpc:
        """Made of a handler as gRPC has it. Long messages are read in slices."""
        behaviors = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        (behavior,) = (each for each in behaviors if each is not None)
        parse = leaving_long_ones(handler.request_deserializer)
        return cls(method.removeprefix("/"), handler.request_streaming, behavior, parse, slices)

    async def received(
        self, context: Context, place: Place, seconds: float, asked: Asked, max_bytes: int | None = None
    ) -> Any:
        """The request; of a stream of requests an iterator of its messages.

        Raises: TooManyBytes, if there is no room for it; StreamStalled, if it does not arrive; NoMessage.
        """
        try:
            async with asyncio.timeout(seconds):
                await place.take()
                if self.request_streaming:
                    return _Requests(self, context, asked, max_bytes)
                message = await context.read()
        except TimeoutError:
            if place.is_taken:
                raise StreamStalled(f"the request did not arrive within {seconds:g} seconds") from None
            raise TooManyBytes("too many requests are arriving") from None
        if not isinstance(message, bytes):  # EOF
            await asyncio.sleep(0)  # grpc.aio ends the messages of a call that is cut off before it cancels the call
            raise NoMessage("the call ended without a request")
        place.shrink(len(message))
        return await self.parsed(message, asked, max_bytes)

    async def parsed(self, message: bytes, asked: Asked, max_bytes: int | None) -> Any:
        """What a message says. Raises: NoMessage; InvalidRequest, if it has too many of anything."""
        if max_bytes is not None and len(message) > max_bytes:
            raise NoMessage(f"the request has {len(message)} bytes, more than {max_bytes}")
        try:
            parsed = await whole(self._parse(message), self._slices)
        except DecodeError:
            raise NoMessage(f"the {len(message)} bytes that came are no message of {self.name}") from None
        asked.note(parsed)
        return parsed


class _Requests:
    """The messages of a stream of requests."""

    def __init__(self, rpc: Rpc, context: Context, asked: Asked, max_bytes: int | None) -> None:
        self._rpc = rpc
        self._context = context
        self._asked = asked
        self._max_bytes = max_bytes

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if not isinstance(message, bytes):  # EOF
            raise StopAsyncIteration
        return await self._rpc.parsed(message, self._asked, self._max_bytes)


def as_stream(handler: Any, call: Behavior) -> grpc.RpcMethodHandler[Any, Any]:
    """What gRPC is given in place of a handler: it hands over the bytes of messages, as they are asked for."""
    make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    return make(call, request_deserializer=None, response_serializer=handler.response_serializer)
