"""`python -m service health`: whether a depot serves, as an exit code; what a container is asked with.

It can be run alone, as ``python -m kvdepot.cli.health``, which takes a tenth of the time: the server's code is not
loaded. There it has to be quick, because a probe asks every few seconds.
"""

from __future__ import annotations

import sys
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS = 4.0


def health(
    address: Annotated[str, typer.Option(help="The depot: HOST:PORT without TLS, or unix:/PATH.")] = "127.0.0.1:50051",
    service: Annotated[str, typer.Option(help="A service, such as kvdepot.v1.CacheService; else the process.")] = "",
) -> None:
    """Ask a depot whether it serves. Exits with 0 if it does, with 1 if it does not or can't be reached."""
    with grpc.insecure_channel(address, (("grpc.enable_http_proxy", 0),)) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            what = {
                grpc.StatusCode.UNAVAILABLE: "no depot answers there",
                grpc.StatusCode.NOT_FOUND: f"it has no service {service!r}",
            }.get(error.code(), error.code().name)
            print(f"error: {address}: {what}", file=sys.stderr)
            raise typer.Exit(1) from error
    told = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(told)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(health)
