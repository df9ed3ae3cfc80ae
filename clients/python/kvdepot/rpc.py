"""The common part of all calls to the depot: the channel's options, the deadline, and the metadata."""

from __future__ import annotations

import math
from contextvars import ContextVar

import grpc

from kvdepot.credentials import Bearer, Credentials
from kvdepot.errors import DepotError, client_closed, depot_error, invalid

DEFAULT_TIMEOUT_SECONDS = 30.0

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 << 20),
    # Half a minute without an answer to pings ends the connection, even while no call is made: the depot hangs, or its
    # node is gone. A depot that dies closes its socket, which the client sees immediately.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A depot that restarts is found within seconds; gRPC's own backoff goes up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # The depot is on this node: the http_proxy of an engine's environment is not meant for it.
    ("grpc.enable_http_proxy", 0),
)

Metadata = tuple[tuple[str, str], ...]

traceparent: ContextVar[str] = ContextVar("kvdepot_traceparent", default="")
"""The W3C Trace Context header that calls made in this context carry; empty for none."""


class CallDefaults:
    """The deadline, the metadata and the errors of a client's calls."""

    def __init__(
        self, address: str, credentials: Credentials | grpc.ChannelCredentials | None, timeout_seconds: float
    ) -> None:
        self.address = checked_address(address)
        self.is_closed = False
        self._timeout_seconds = checked_timeout(timeout_seconds)
        self._bearer = Bearer(credentials) if isinstance(credentials, Credentials) else None

    def metadata(self) -> Metadata | None:
        """Return the caller's token and its traceparent, as far as there are any.

        Raises: OSError.
        """
        token = self._bearer.metadata() if self._bearer is not None else ()
        parent = traceparent.get()
        return (*token, ("traceparent", parent)) if parent else token or None

    def timeout(self, timeout_seconds: float | None, *, added_seconds: float = 0.0) -> float:
        """Return the caller's timeout, or else the default and `added_seconds`.

        Raises: ValueError.
        """
        if timeout_seconds is None:
            return self._timeout_seconds + added_seconds
        return checked_timeout(timeout_seconds)

    def require_open(self) -> None:
        """Check that the client was not closed.

        Raises: Closed.
        """
        if self.is_closed:
            raise client_closed(self.address)

    def failure(self, call: grpc.RpcError, rpc: str, limit_seconds: float | None) -> DepotError:
        """Return the error of a failed call. If it took too long, the message says what, where, and how long."""
        if self.is_closed:
            return client_closed(self.address)  # it was closed while the call was running
        error = depot_error(call)
        if error.reason == grpc.StatusCode.DEADLINE_EXCEEDED.name and limit_seconds is not None:
            return too_late(rpc, self.address, limit_seconds)
        return error


def too_late(rpc: str, address: str, limit_seconds: float) -> DepotError:
    """Return the error for an RPC that took longer than its caller allowed."""
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    message = f"{rpc} at {address} did not end within its limit of {limit_seconds:g} s"
    return DepotError(code, code.name, message)


def rpc_of(request: object) -> str:
    """Return the name of the RPC that a request is for."""
    return type(request).__name__.removesuffix("Request")


def checked_timeout(timeout_seconds: float) -> float:
    """Return the timeout, if it is positive and finite: every call has to end.

    Raises: InvalidArgument.
    """
    is_number = isinstance(timeout_seconds, (int, float))
    if not (is_number and timeout_seconds > 0 and math.isfinite(timeout_seconds)):
        raise invalid("timeout_seconds", f"is {timeout_seconds!r}, not a positive and finite number")
    return timeout_seconds


def checked_address(address: str) -> str:
    """Return the address, if it is a text.

    Raises: InvalidArgument.
    """
    if not isinstance(address, str) or not address:
        raise invalid("address", f"is {address!r}, not `host:port` or `unix:/path`")
    return address


def channel_arguments(
    address: str, credentials: Credentials | grpc.ChannelCredentials | None
) -> tuple[grpc.ChannelCredentials | None, tuple[tuple[str, int | str], ...]]:
    """Return a channel's credentials (None: without TLS) and its options.

    The errors are those of `Credentials.channel_credentials`.

    Raises: ValueError, OSError.
    """
    if isinstance(credentials, Credentials):
        return credentials.channel_credentials(address), (*OPTIONS, *credentials.options())
    return credentials, OPTIONS
