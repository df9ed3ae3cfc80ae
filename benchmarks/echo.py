"""``python -m benchmarks.echo ADDRESS``: a grpc.aio server that answers each request with the same bytes, no more."""

from __future__ import annotations

import asyncio
import sys

import grpc
import uvloop


async def serve(address: str) -> None:
    """Serve /echo/Echo until the process ends."""

    async def echo(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", handlers),))
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
