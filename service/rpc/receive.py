"""Receives requests: not before the interceptor asks for them, so not before the caller is known.

gRPC receives the request of a unary call before the interceptor can look at the call. Of a stream of requests, gRPC
receives nothing unasked. So every RPC is registered with gRPC as a stream of requests, and a unary call reads one
message. The messages are read from the context, because gRPC's iterator keeps the last message for as long as it lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from service.access.credentials import Context
from service.depot.slices import Slices
from service.depot.trace_context import call_session, note_session
from service.errors import NoMessage, StreamStalled, TooManyBytes
from service.rpc.inflight_bytes import Reservation
from service.rpc.wire import Unread, leaving_long_ones

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior = Callable[..., Any]
MAX_ID_CHARS = 256


class Call:
    """The state of one RPC in the interceptor. It may outlive its request, so it keeps nothing large."""

    __slots__ = ("arrival", "instance_id")

    def __init__(self) -> None:
        self.instance_id = ""
        """The instance that the request names. Empty: it names none, or it was not received."""
        self.arrival: int | None = None
        """What the fair queue returned for the call's arrival. None: the call has asked for its slot, or needs none."""

    def note(self, message: Any) -> None:
        """Note the instance that a message names, itself or in the header of an inline store, and the session."""
        if not self.instance_id:
            named = getattr(message, "instance_id", "") or getattr(getattr(message, "header", None), "instance_id", "")
            self.instance_id = named[:MAX_ID_CHARS]
            if call_session.get() is not None:
                of = message if hasattr(message, "instance_id") else getattr(message, "header", None)
                note_session(self.instance_id, getattr(of, "session_id", "")[:MAX_ID_CHARS])


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method of a servicer, and how its requests are received."""

    method: str
    behavior: Behavior
    request_streaming: bool
    response_streaming: bool
    _parse: Callable[[bytes], Any]
    _slices: Slices

    @classmethod
    def of(cls, method: str, handler: Any, slices: Slices) -> Rpc:
        """Return the method of a gRPC handler. Its long messages are parsed in slices."""
        behaviors = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        (behavior,) = (each for each in behaviors if each is not None)
        parse = leaving_long_ones(handler.request_deserializer)
        return cls(method, behavior, handler.request_streaming, handler.response_streaming, parse, slices)

    async def receive(
        self, context: Context, reservation: Reservation, seconds: float, call: Call, max_bytes: int
    ) -> Any:
        """Return the request: one message, or for a stream of requests an iterator of messages.

        Wait at most `seconds` for it. A message may have `max_bytes`.

        Raises: TooManyBytes, StreamStalled, NoMessage, InvalidRequest.
        """
        try:
            async with asyncio.timeout(seconds):
                await reservation.reserve()
                if self.request_streaming:
                    return _Requests(self, context, call, max_bytes)
                message = await context.read()
        except TimeoutError:
            if reservation.num_bytes:
                raise StreamStalled(f"the request did not arrive within {seconds:g} seconds") from None
            raise TooManyBytes("too many requests are arriving") from None
        if not isinstance(message, bytes):  # EOF
            await asyncio.sleep(0)  # grpc.aio ends the messages of a cancelled call before it cancels the call
            raise NoMessage("the call ended without a request")
        reservation.shrink(len(message))
        return await self.parsed(message, call, max_bytes)

    async def parsed(self, message: bytes, call: Call, max_bytes: int) -> Any:
        """Return the parsed message.

        Raises: NoMessage, InvalidRequest.
        """
        if len(message) > max_bytes:
            raise NoMessage(f"the request has {len(message)} bytes, more than {max_bytes}")
        try:
            parsed = self._parse(message)
            if isinstance(parsed, Unread):
                parsed = await parsed.read(self._slices)
        except DecodeError:
            raise NoMessage(f"the {len(message)} bytes are no message of {self.method[1:]}") from None
        call.note(parsed)
        return parsed


class _Requests:
    """The messages of a stream of requests. Not a generator, which would keep each message until the next one."""

    def __init__(self, rpc: Rpc, context: Context, call: Call, max_bytes: int) -> None:
        self._rpc = rpc
        self._context = context
        self._call = call
        self._max_bytes = max_bytes

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if not isinstance(message, bytes):  # EOF
            raise StopAsyncIteration
        return await self._rpc.parsed(message, self._call, self._max_bytes)


def stream_handler(behavior: Behavior, handler: Any) -> Handler:
    """Return what gRPC gets in place of a handler: it calls `behavior`, which reads the bytes of messages."""
    make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    return make(behavior, request_deserializer=None, response_serializer=handler.response_serializer)
