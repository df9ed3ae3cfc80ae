"""The command `health`: whether a depot serves, as an exit code.

A probe runs `python -m kvdepot.cli.health` every few seconds, so it must start quickly.
"""

from __future__ import annotations

from typing import Annotated

import grpc
import typer

from kvdepot.cli.depot_options import DEFAULT_ADDRESS
from kvdepot.cli.terminal import fail
from kvdepot.wire import varint

TIMEOUT_SECONDS = 4.0

STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
"""By number, as grpc.health.v1.HealthCheckResponse has them."""


def health(
    address: Annotated[str, typer.Option(help="The depot: HOST:PORT without TLS, or unix:/PATH.")] = DEFAULT_ADDRESS,
    service: Annotated[str, typer.Option(help="A service, such as kvdepot.v1.CacheService; else the process.")] = "",
) -> None:
    """Ask a depot whether it serves. Exits with 0 if it does, with 1 if it does not or can't be reached."""
    with grpc.insecure_channel(address, (("grpc.enable_http_proxy", 0),)) as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            status = _status(check(_request(service), timeout=TIMEOUT_SECONDS))
        except grpc.RpcError as error:
            problem = {
                grpc.StatusCode.UNAVAILABLE: "no depot answers there",
                grpc.StatusCode.NOT_FOUND: f"it has no service {service!r}",
            }.get(error.code(), error.code().name)
            fail(f"{address}: {problem}")
    print(status)
    if status != "SERVING":
        raise typer.Exit(1)


def _request(service: str) -> bytes:
    """Return a HealthCheckRequest; field 1 is the service."""
    name = service.encode()
    return b"\x0a" + varint(len(name)) + name


def _status(response: bytes) -> str:
    """Return the status in a HealthCheckResponse, its field 1."""
    return STATUSES[response[1] if response else 0]


if __name__ == "__main__":
    typer.run(health)
