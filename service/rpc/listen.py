"""Listeners: TCP with or without TLS, unix sockets with their mode and owner, and the options of gRPC's server."""

from __future__ import annotations

import grp
import ipaddress
import logging
import os
import pwd
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import grpc

from service.access.access import Access
from service.access.certificates import server_credentials
from service.settings import Settings

logger = logging.getLogger(__name__)

PROBE_SECONDS = 1.0
STREAMS_PER_CONNECTION = 1_024
CONNECTIONS_PER_LISTENER = 4_096
MAX_SOCKET_PATH_BYTES = 107
_KINDS = (
    (stat.S_ISREG, "an ordinary file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class CannotListen(Exception):
    """An address is taken or not of this machine, or a socket can't be given to its owner."""


def server_options(max_message_bytes: int) -> Sequence[tuple[str, int]]:
    """Return the options of gRPC's server."""
    return (
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # gRPC takes 64 KiB of a request before its call asks for it. With this option on, it takes megabytes.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
        ("grpc.max_allowed_incoming_connections", CONNECTIONS_PER_LISTENER),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.so_reuseport", 0),  # a taken port is an error
        # An engine whose machine vanishes sends no FIN. Pings without an answer reveal it.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    )


def listen(server: grpc.aio.Server, settings: Settings, access: Access) -> tuple[str, ...]:
    """Open all listeners, and return their addresses with the chosen ports.

    Raises: CannotListen.
    """
    addresses = tuple(_listen(server, address, settings, access) for address in settings.listen)
    _warn_of_open_doors(settings)
    return addresses


def is_on_this_machine(address: str) -> bool:
    """Return whether only processes of this machine can connect to a listener."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _warn_of_open_doors(settings: Settings) -> None:
    remote = ", ".join(address for address in settings.listen if not is_on_this_machine(address))
    if not remote:
        return
    if not settings.tenants and not settings.tls_client_ca:
        logger.warning(
            "NO AUTHENTICATION on %s: every client can read, write and clear the whole cache. Set tenants and "
            "tls_cert, or tls_client_ca, or listen on 127.0.0.1 or unix: only",
            remote,
        )
    elif not settings.tls_cert and settings.tokens_over_plain_tcp:
        logger.warning(
            "tokens are taken over plain TCP on %s: others on the network can read them. Set tls_cert", remote
        )
    elif not settings.tls_cert:
        logger.warning("no tenant can call over %s: tokens are not taken over TCP without TLS. Set tls_cert", remote)


def _listen(server: grpc.aio.Server, address: str, settings: Settings, access: Access) -> str:
    if address.startswith("unix:"):
        return _listen_on_socket(server, address, settings)
    certificate = access.certificate
    try:
        if certificate is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, server_credentials(lambda: certificate.value))
    except RuntimeError as error:
        raise CannotListen(f"{address} is taken, or not an address of this machine") from error
    return f"{address.rpartition(':')[0]}:{port}"


def _listen_on_socket(server: grpc.aio.Server, address: str, settings: Settings) -> str:
    path = Path(address.removeprefix("unix:").removeprefix("//"))
    if not path.parent.is_dir():
        raise CannotListen(f"{address}: there is no folder {path.parent}")
    obstacle = _obstacle(path)
    if obstacle:
        raise CannotListen(f"{address}: {obstacle}")
    if _is_served(path):
        raise CannotListen(f"{address} is taken: another process serves there")
    # No process may connect between the creation of the socket and a chmod.
    before = os.umask(0o777 & ~int(settings.unix_socket_mode, 8))
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise CannotListen(f"{address} can't be bound") from error
    finally:
        os.umask(before)
    if settings.unix_socket_owner:
        _give_to(path, settings.unix_socket_owner)
    return address


def _obstacle(path: Path) -> str:
    """Return why no socket can be created at a path. Empty: one can be, unless another process serves there."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        return f"the path of a socket has at most {MAX_SOCKET_PATH_BYTES} bytes"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return f"{path} is a symbolic link that leads nowhere. Remove it, or choose another path"
    except OSError as error:
        return f"{path}: {error.strerror}"
    else:
        if not stat.S_ISSOCK(mode):
            what = next((what for is_such, what in _KINDS if is_such(mode)), "no socket")
            return f"{path} is {what}, which is left as it is. Remove it, or choose another path"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"nothing can be made in the folder {path.parent}: permission denied"
    return ""


def _give_to(path: Path, owner: str) -> None:
    user, _, group = owner.partition(":")
    try:
        uid = -1 if not user else int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
        gid = -1 if not group else int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        os.chown(path, uid, gid)
    except KeyError as error:
        raise CannotListen(f"unix:{path} can't be given to {owner}: this machine does not know that name") from error
    except OSError as error:
        raise CannotListen(f"unix:{path} can't be given to {owner}: {error.strerror}") from error


def _is_served(path: Path) -> bool:
    """Return whether a process accepts on a unix socket. A socket that a dead process left behind is replaced."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.settimeout(PROBE_SECONDS)
        probe.connect(str(path))
        return True
    return False
