"""The command `health`: whether a depot serves, as an exit code.

A probe runs `python -m kvdepot.cli.health` every few seconds, so it must start quickly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import grpc
import typer

from kvdepot.cli.address import read_address
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, takes_credentials
from kvdepot.cli.failures import why
from kvdepot.cli.terminal import fail
from kvdepot.credentials import Credentials
from kvdepot.errors import DepotError, depot_error
from kvdepot.rpc import channel_arguments
from kvdepot.wire import varint

TIMEOUT_SECONDS = 4.0

STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
"""By number, as grpc.health.v1.HealthCheckResponse has them."""


@takes_credentials
def health(
    *,
    address: Address = DEFAULT_ADDRESS,
    service: Annotated[str, typer.Option(help="A service, such as kvdepot.v1.CacheService; else the process.")] = "",
    credentials: Credentials,
) -> None:
    """Ask a depot whether it serves. Exits with 0 if it does, with 1 if it does not or can't be reached.

    It sends no token: the answer is for everyone.
    """
    credentials = replace(credentials, token_file=None)
    try:
        read_address(address)
        status = _ask(address, service, credentials)
    except (DepotError, ValueError, OSError) as error:
        if isinstance(error, DepotError) and error.code is grpc.StatusCode.NOT_FOUND:
            fail(f"{address}: it has no service {service!r}")
        fail(f"{address}: {why(error, address, credentials)}")
    print(status)
    if status != "SERVING":
        raise typer.Exit(1)


def _ask(address: str, service: str, credentials: Credentials) -> str:
    """Return the status of a service.

    Raises: DepotError, ValueError, OSError.
    """
    secure, options = channel_arguments(address, credentials)
    with (
        grpc.insecure_channel(address, options) if secure is None else grpc.secure_channel(address, secure, options)
    ) as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            return _status(check(_request(service), timeout=TIMEOUT_SECONDS))
        except grpc.RpcError as error:
            raise depot_error(error) from error


def _request(service: str) -> bytes:
    """Return a HealthCheckRequest; field 1 is the service."""
    name = service.encode()
    return b"\x0a" + varint(len(name)) + name


def _status(response: bytes) -> str:
    """Return the status in a HealthCheckResponse, its field 1."""
    return STATUSES[response[1] if response else 0]


if __name__ == "__main__":
    typer.run(health)
