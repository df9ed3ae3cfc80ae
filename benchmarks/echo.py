"""``python -m benchmarks.echo ADDRESS``: a grpc.aio server that does nothing but take and send bytes.

It listens on the unix socket and on a port of loopback, whose address it prints.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
import uvloop

from kvdepot.wire import MAX_PIECE_BYTES, Piece, serialised_retrieve
from service.process.heap import keep_freed_memory

Context = grpc.aio.ServicerContext[bytes, bytes]


async def echo(request: bytes, context: Context) -> bytes:
    """Answer with the request."""
    return request


async def sink(requests: AsyncIterator[bytes], context: Context) -> bytes:
    """Read a stream to its end."""
    async for _ in requests:
        pass
    return b""


async def source(request: bytes, context: Context) -> None:
    """Write the requested number of messages of an inline retrieve's size, and build each, as a retrieve does."""
    data = memoryview(bytes(MAX_PIECE_BYTES))
    for number in range(int(request)):
        await context.write(serialised_retrieve(Piece(data, number, 0)))


async def serve(address: str) -> None:
    """Serve until the process ends."""
    keep_freed_memory()
    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Sink": grpc.stream_unary_rpc_method_handler(sink),
        "Source": grpc.unary_stream_rpc_method_handler(source),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", handlers),))
    server.add_insecure_port(address)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)  # for the parent process
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
