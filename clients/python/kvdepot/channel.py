"""How a channel to the depot is set up, and how long a call may take."""

from __future__ import annotations

import math
from collections.abc import Sequence

import grpc

from kvdepot.credentials import Credentials

DEFAULT_TIMEOUT_SECONDS = 30.0

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 << 20),
    # A depot that hangs, or whose node is gone, is noticed after half a minute even while no call is made; one that
    # dies closes its socket, which is noticed at once.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A depot that was restarted is found again within seconds; gRPC would wait for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # The depot is on this node: the http_proxy of an engine's environment is not meant for it.
    ("grpc.enable_http_proxy", 0),
)


def checked_timeout(timeout_seconds: float) -> float:
    """The timeout, if it is one: every call has to end.

    Raises:
        ValueError: it is not positive and finite.
    """
    if not (timeout_seconds > 0 and math.isfinite(timeout_seconds)):
        raise ValueError(f"timeout_seconds must be positive and finite, not {timeout_seconds}")
    return timeout_seconds


def opened(address: str, credentials: Credentials | grpc.ChannelCredentials | None) -> grpc.Channel:
    """A channel for calls that block. Raises: see `Credentials.channel_credentials`."""
    secure, options = _security(address, credentials)
    if secure is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, secure, options)


def opened_on_loop(address: str, credentials: Credentials | grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """A channel for an event loop. Raises: see `Credentials.channel_credentials`."""
    secure, options = _security(address, credentials)
    if secure is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, secure, options)


def _security(
    address: str, credentials: Credentials | grpc.ChannelCredentials | None
) -> tuple[grpc.ChannelCredentials | None, Sequence[tuple[str, int | str]]]:
    if isinstance(credentials, Credentials):
        return credentials.channel_credentials(address), (*OPTIONS, *credentials.options())
    return credentials, OPTIONS
