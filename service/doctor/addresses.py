"""Probes addresses: whether the depot can bind them, and which process listens there."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from kvdepot import DepotClient, DepotError
from service.doctor.facts import AddressFacts, Holder, SocketFacts
from service.settings import Settings

TIMEOUT_SECONDS = 5.0


def listener(address: str, settings: Settings) -> AddressFacts:
    """Probe one address of `settings.listen`."""
    if address.startswith("unix:"):
        return _unix(address, settings.unix_socket_owner)
    host, _, port = address.rpartition(":")
    is_depot = partial(_has_certificate, Path(settings.tls_cert)) if settings.tls_cert else _is_depot
    return _tcp(address, host.strip("[]"), int(port), is_depot)


def metrics(settings: Settings) -> AddressFacts | None:
    """Probe the address of the HTTP pages. None: the settings serve none."""
    if not (settings.serves_metrics_page or settings.health_without_metrics):
        return None
    host, port = settings.prometheus_host, settings.prometheus_port
    return _tcp(_shown(host, port), host, port, _has_pages)


def console(settings: Settings) -> AddressFacts | None:
    """Probe the address of the console. None: there is none."""
    if not settings.console_port:
        return None
    host, port = settings.console_host, settings.console_port
    is_console = partial(_has_certificate, Path(settings.tls_cert)) if settings.tls_cert else _has_console
    return _tcp(_shown(host, port), host, port, is_console)


def collector_error(endpoint: str) -> str:
    """Return why the collector does not answer. Empty: it answers."""
    try:
        url = urlsplit(endpoint)
        port = url.port or (443 if url.scheme == "https" else 80)
        with socket.create_connection((url.hostname or "", port), timeout=TIMEOUT_SECONDS):
            return ""
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unix(address: str, owner: str) -> AddressFacts:
    path = Path(address.removeprefix("unix:").removeprefix("//"))
    folder = path.parent
    facts = SocketFacts(
        path_bytes=len(os.fsencode(path)),
        folder=str(folder),
        folder_mode=stat.S_IMODE(folder.stat().st_mode) if folder.is_dir() else None,
        folder_is_writable=os.access(folder, os.W_OK | os.X_OK),
        owner_error=_owner_error(owner),
    )
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(TIMEOUT_SECONDS)
            probe.connect(str(path))
    except OSError:
        return AddressFacts(address=address, holder=Holder.NONE, socket=facts)
    return AddressFacts(address=address, holder=Holder.DEPOT if _is_depot(address) else Holder.OTHER, socket=facts)


def _owner_error(owner: str) -> str:
    user, _, group = owner.partition(":")
    for name, look_up in ((user, pwd.getpwnam), (group, grp.getgrnam)):
        if name and not name.isdecimal():
            try:
                look_up(name)
            except KeyError:
                return f"unix_socket_owner: this machine does not know {name}"
    return ""


def _tcp(shown: str, host: str, port: int, is_depot: Callable[[str], bool]) -> AddressFacts:
    """Bind the address for a moment. If another process has it, `is_depot` decides whether that is a depot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family) as probe:
            # An address whose socket was closed a moment ago counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        if port and error.errno == errno.EADDRINUSE:
            holder = Holder.DEPOT if is_depot(shown) else Holder.OTHER
            return AddressFacts(address=shown, holder=holder)
        return AddressFacts(address=shown, holder=Holder.NONE, bind_error=error.strerror or str(error))
    return AddressFacts(address=shown, holder=Holder.NONE)


def _is_depot(address: str) -> bool:
    """Return whether a depot answers. A depot that only asks for credentials also counts."""
    try:
        with DepotClient(address, timeout_seconds=TIMEOUT_SECONDS) as client:
            client.get_status()
    except DepotError as error:
        return error.reason in ("CREDENTIALS_MISSING", "ADMIN_ONLY")
    return True


def _has_certificate(tls_cert: Path, address: str) -> bool:
    """Return whether the server has this certificate: then it is the depot with these settings."""
    host, _, port = address.rpartition(":")
    try:
        certificate = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=TIMEOUT_SECONDS)
        return certificate.strip() in tls_cert.read_text()
    except (OSError, ValueError):
        return False


def _has_pages(address: str) -> bool:
    """Return whether a depot answers: its pages name it, also where there is none."""
    try:
        urllib.request.urlopen(f"http://{address}/", timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code == HTTPStatus.NOT_FOUND and b"kvdepot serves" in answer.read()
    except (OSError, ValueError):
        return False
    return False


def _has_console(address: str) -> bool:
    """Return whether the console of a depot answers."""
    try:
        with urllib.request.urlopen(f"http://{address}/static/app.js", timeout=TIMEOUT_SECONDS) as answer:
            return "content-security-policy" in answer.headers
    except (OSError, ValueError):
        return False
