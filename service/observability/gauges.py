"""Metrics that are read from the state of the depot and of access, so that dropped events do not change them."""

from __future__ import annotations

from collections.abc import Callable

from service.access.access import Access
from service.depot.tenant_depots import TenantDepots
from service.rpc.admission import Admission
from service.rpc.refusals import Refusals
from telemetry.metrics import definitions
from telemetry.metrics.metric import Attributes
from telemetry.metrics.snapshot import Scalars


class DepotGauges:
    """The gauges of all depots, read on the event loop."""

    def __init__(
        self, depots: TenantDepots, admission: Admission, refusals: Refusals, populated_bytes: Callable[[], int]
    ) -> None:
        self._depots = depots
        self._admission = admission
        self._refusals = refusals
        self._populated_bytes = populated_bytes

    def read(self) -> Scalars:
        """Return the state of L1, of attachments, sessions and calls, and of tenants."""
        return {**self._l1(), **self._work(), **self._tenants()}

    def _l1(self) -> Scalars:
        index = self._depots.index
        return {
            definitions.L1_USED: {(): index.pool.used_bytes},
            definitions.L1_CAPACITY: {(): index.pool.capacity_bytes},
            definitions.L1_POPULATED: {(): self._populated_bytes()},
            definitions.L1_SLOTS: {
                ("used",): index.pool.num_used_slots,
                ("free",): index.pool.num_free_slots,
            },
            definitions.L1_RESIDENT: {(): index.num_resident},
            definitions.L1_PROTECTED: {(): index.num_protected},
            definitions.L1_EVICTED: {(): index.num_evicted},
            definitions.L1_REFUSED: {(): sum(depot.num_refused_chunks for depot in self._depots)},
        }

    def _work(self) -> Scalars:
        instances = [instance for depot in self._depots for instance in depot.instances]
        attachments = [attachment for instance in instances for attachment in instance.ranks.values()]
        mapped_bytes = sum(each.buffer.mapped_bytes for each in attachments if each.buffer is not None)
        return {
            definitions.LEASES_LIVE: {(): sum(len(depot.leases) for depot in self._depots)},
            definitions.SESSIONS_LIVE: {(): sum(len(depot.sessions) for depot in self._depots)},
            definitions.INSTANCES_LIVE: {(): len(instances)},
            definitions.ATTACHMENTS_LIVE: {(): len(attachments)},
            definitions.ATTACHMENTS_MAPPED: {(): mapped_bytes},
            definitions.DRAINING: {(): int(self._admission.is_draining)},
            definitions.RPCS_RUNNING: {
                ("call",): self._admission.num_running,
                ("stream",): self._admission.num_streams,
            },
            definitions.RPCS_REFUSED: dict(self._refusals.num_refused.items()),
        }

    def _tenants(self) -> Scalars:
        tenants = [depot for depot in self._depots if depot.tenant]
        in_l1 = self._depots.chunks_and_bytes() if tenants else {}
        return {
            definitions.TENANT_L1_USED: {(each.tenant,): in_l1[each.tenant][1] for each in tenants},
            definitions.TENANT_SESSIONS: {(each.tenant,): len(each.sessions) for each in tenants},
            definitions.TENANT_RPCS: {
                (kind, each.tenant): num_running
                for each in tenants
                for kind, num_running in (("call", each.quota.num_running), ("stream", each.quota.num_streams))
            },
            definitions.TENANT_IN_FLIGHT: {(each.tenant,): each.quota.bytes_in_flight for each in tenants},
            definitions.TENANT_REFUSED: {
                (reason, each.tenant): num_refused
                for each in tenants
                for reason, num_refused in each.quota.num_refused.items()
            },
        }


def read_access(access: Access) -> Scalars:
    """Return which calls were denied, and the state of the watched files."""
    files = [file for file in (access.tenants, access.certificate) if file is not None]
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
