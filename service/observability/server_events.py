"""The first and the last event of a server: what it serves with, and what its drain has left."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from time import monotonic
from typing import Any

import grpc

from kvdepot.version import __version__
from service.depot.tenant_depots import TenantDepots
from service.l1.adoption import Adoption
from service.rpc.admission import Admission
from service.settings import Settings
from telemetry.events import ServerStarted, ServerStopped

BUILD = f"Python {platform.python_version()}, grpc {grpc.__version__}"


def started(
    settings: Settings, listen: Sequence[str], http_address: str | None, transfer_backend: str, adoption: Adoption
) -> ServerStarted:
    """Return the event of a server that begins to take calls."""
    return ServerStarted(
        version=__version__,
        build=BUILD,
        listen=tuple(listen),
        http_address=http_address or "",
        l1_bytes=settings.l1_size,
        chunk_size=settings.chunk_size,
        transfer_backend=transfer_backend,
        has_tenants=bool(settings.tenants),
        has_tls=bool(settings.tls_cert),
        l1_file=settings.l1_file,
        num_adopted_chunks=adoption.num_chunks,
        num_rejected_chunks=adoption.num_rejected.total(),
    )


class DrainReport:
    """What a drain leaves. Made when the drain begins."""

    def __init__(self, depots: TenantDepots, admission: Admission, start: float) -> None:
        self._depots = depots
        self._admission = admission
        self._start = start
        self._drain_start = monotonic()
        self._left: dict[str, Any] = {}

    def waited(self) -> None:
        """Count what is left: the drain waits no more for calls."""
        instances = [instance for depot in self._depots for instance in depot.instances]
        attachments = [attachment for instance in instances for attachment in instance.ranks.values()]
        self._left = {
            "num_calls": self._admission.num_running,
            "num_transfers": sum(len(attachment.transfers) for attachment in attachments),
            "num_attachments": len(attachments),
            "num_sessions": sum(len(depot.sessions) for depot in self._depots),
            "num_leases": sum(len(depot.leases) for depot in self._depots),
        }

    def stopped(self) -> ServerStopped:
        """Return the event of the drain's end, after `waited`."""
        now = monotonic()
        return ServerStopped(duration_seconds=now - self._drain_start, uptime_seconds=now - self._start, **self._left)
