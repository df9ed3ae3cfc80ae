"""The depot, as figures."""

from __future__ import annotations

from collections.abc import Callable

from service.boundary import Boundary
from service.depots import Depots
from telemetry.metrics import catalogue
from telemetry.metrics.readings import Scalars


class DepotGauges:
    """Reads the depot, on the event loop; what is counted here misses nothing, whatever events are dropped."""

    def __init__(self, depots: Depots, boundary: Boundary, populated_bytes: Callable[[], int]) -> None:
        self._depots = depots
        self._boundary = boundary
        self._populated_bytes = populated_bytes

    def read(self) -> Scalars:
        """How the depot is now."""
        return {**self._l1(), **self._who_is_there(), **self._tenants()}

    def _l1(self) -> Scalars:
        index = self._depots.index
        return {
            catalogue.L1_USED: {(): index.pool.used_bytes},
            catalogue.L1_CAPACITY: {(): index.pool.capacity_bytes},
            catalogue.L1_POPULATED: {(): self._populated_bytes()},
            catalogue.L1_SLOTS: {
                ("used",): index.pool.num_used_slots,
                ("free",): index.pool.num_free_slots,
            },
            catalogue.L1_RESIDENT: {(): index.num_resident},
            catalogue.L1_PROTECTED: {(): index.num_protected},
            catalogue.L1_EVICTED: {(): index.num_evicted},
            catalogue.L1_REFUSED: {(): sum(depot.num_refused_chunks for depot in self._depots)},
        }

    def _who_is_there(self) -> Scalars:
        instances = [instance for depot in self._depots for instance in depot.instances]
        attachments = [attachment for instance in instances for attachment in instance.ranks.values()]
        mapped_bytes = sum(each.buffer.mapped_bytes for each in attachments if each.buffer is not None)
        return {
            catalogue.LEASES_LIVE: {(): sum(len(depot.leases) for depot in self._depots)},
            catalogue.SESSIONS_LIVE: {(): sum(len(depot.sessions) for depot in self._depots)},
            catalogue.INSTANCES_LIVE: {(): len(instances)},
            catalogue.ATTACHMENTS_LIVE: {(): len(attachments)},
            catalogue.ATTACHMENTS_MAPPED: {(): mapped_bytes},
            catalogue.DRAINING: {(): int(self._boundary.draining)},
            catalogue.RPCS_RUNNING: {
                ("call",): self._boundary.num_running,
                ("stream",): self._boundary.num_standing,
            },
            catalogue.RPCS_REFUSED: dict(self._boundary.refusals.num_refused.items()),
        }

    def _tenants(self) -> Scalars:
        tenants = [depot for depot in self._depots if depot.tenant]
        in_l1 = self._depots.chunks_and_bytes() if tenants else {}
        return {
            catalogue.TENANT_L1_USED: {(each.tenant,): in_l1[each.tenant][1] for each in tenants},
            catalogue.TENANT_SESSIONS: {(each.tenant,): len(each.sessions) for each in tenants},
            catalogue.TENANT_RPCS: {
                (kind, each.tenant): num_running
                for each in tenants
                for kind, num_running in (("call", each.allowance.num_running), ("stream", each.allowance.num_standing))
            },
            catalogue.TENANT_IN_FLIGHT: {(each.tenant,): each.allowance.bytes_in_flight for each in tenants},
            catalogue.TENANT_REFUSED: {
                (reason, each.tenant): num_refused
                for each in tenants
                for reason, num_refused in each.allowance.num_refused.items()
            },
        }
