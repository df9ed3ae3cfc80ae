"""Probes: RPCs of health and reflection, whose callers need no credentials. They are few, short and small."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from service.access.credentials import Context
from service.access.peers import PeerLimit, peer_of
from service.errors import StreamStalled
from service.rpc.inflight_bytes import InflightBytes
from service.rpc.receive import Behavior, Call, Rpc

REFLECTION = "/grpc.reflection."
RECEIVE_SECONDS = 1.0
MAX_STREAM_SECONDS = 60.0
MAX_REQUEST_BYTES = 4_096
NUM_LARGEST_REQUESTS = 8
MAX_OPEN = {  # of one peer, and of all peers
    "/grpc.health.v1.Health/Check": (64, 512),
    "/grpc.health.v1.Health/List": (64, 512),
    "/grpc.health.v1.Health/Watch": (32, 256),
}
MAX_OPEN_OF_OTHERS = (4, 16)


class Probes:
    """The probes, limited by peer. Reflection calls `authenticate`; None: it needs no credentials."""

    def __init__(self, max_message_bytes: int, authenticate: Callable[[str, Context], object] | None) -> None:
        self._authenticate = authenticate
        self._health_bytes = InflightBytes(NUM_LARGEST_REQUESTS, max_message_bytes)
        self._reflection_bytes = InflightBytes(NUM_LARGEST_REQUESTS, max_message_bytes)
        self.inflight = (self._health_bytes, self._reflection_bytes)

    def serving(self, rpc: Rpc) -> Behavior:
        """Return the behavior that serves calls of a method."""
        limit = PeerLimit(*MAX_OPEN.get(rpc.method, MAX_OPEN_OF_OTHERS))
        inflight = self._reflection_bytes if rpc.request_streaming else self._health_bytes
        authenticate = self._authenticate if rpc.method.startswith(REFLECTION) else None

        async def serve(context: Context, call: Call) -> Any:
            if authenticate is not None:
                authenticate(rpc.method, context)
            peer = peer_of(context.peer())
            with limit.open_call(peer), inflight.reservation(peer) as reservation:
                request = await rpc.receive(context, reservation, RECEIVE_SECONDS, call, MAX_REQUEST_BYTES)
                if rpc.request_streaming:
                    return await _send_all(rpc.behavior(request, context), context)
                return await rpc.behavior(request, context)

        return serve


async def _send_all(responses: Any, context: Context) -> None:
    """Send what an async generator yields.

    Raises: StreamStalled.
    """
    try:
        async with asyncio.timeout(MAX_STREAM_SECONDS):
            async for response in responses:
                await context.write(response)
    except TimeoutError as error:
        raise StreamStalled(f"the stream was open for {MAX_STREAM_SECONDS:g} seconds") from error
