"""The common part of all calls to the depot: the channel's options, the deadline, and the metadata."""

from __future__ import annotations

import math
from contextvars import ContextVar

import grpc

from kvdepot.credentials import Bearer, Credentials

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
    """The deadline and the metadata of a client's calls."""

    def __init__(self, credentials: Credentials | grpc.ChannelCredentials | None, timeout_seconds: float) -> None:
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


def checked_timeout(timeout_seconds: float) -> float:
    """Return the timeout, if it is positive and finite: every call has to end.

    Raises: ValueError.
    """
    if not (timeout_seconds > 0 and math.isfinite(timeout_seconds)):
        raise ValueError(f"timeout_seconds must be positive and finite, not {timeout_seconds}")
    return timeout_seconds


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
