"""Who is refused and what the watched files are like, as figures."""

from __future__ import annotations

from service.access.access import Access
from telemetry.metrics import definitions as definitions
from telemetry.metrics.metric import Attributes
from telemetry.metrics.snapshot import Scalars


class AccessGauges:
    """Reads who may call, on the event loop."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def read(self) -> Scalars:
        """How it is now."""
        access = self._access
        files = [each for each in (access.tenants, access.certificate) if each is not None]
        reads: dict[Attributes, float] = {}
        for file in files:
            reads[file.name, "used"] = file.num_reloads
            reads[file.name, "refused"] = file.num_refusals
        seconds_left = access.certificate_seconds_left
        return {
            definitions.DENIED: {(reason, tenant): n for (tenant, reason), n in access.audit.num_denied.items()},
            definitions.FILES_READ: reads,
            definitions.FILES_BROKEN: {(file.name,): int(file.is_broken) for file in files},
            definitions.CERTIFICATE_TIME_LEFT: {(): seconds_left} if seconds_left is not None else {},
        }
