"""The depot, as figures."""

from __future__ import annotations

from collections.abc import Callable

from service.boundary import Boundary
from service.depot import Depot
from telemetry.metrics import catalogue
from telemetry.metrics.readings import Scalars


class DepotGauges:
    """Reads the depot, on the event loop; what is counted here misses nothing, whatever events are dropped."""

    def __init__(self, depot: Depot, boundary: Boundary, populated_bytes: Callable[[], int]) -> None:
        self._depot = depot
        self._boundary = boundary
        self._populated_bytes = populated_bytes

    def read(self) -> Scalars:
        """How the depot is now."""
        return {**self._l1(), **self._who_is_there()}

    def _l1(self) -> Scalars:
        index = self._depot.index
        extents = index.pool.extents(other_than=0)  # no slot has 0 bytes: all of them
        num_used_slots = sum(extent.num_used for extent in extents)
        return {
            catalogue.L1_USED: {(): index.pool.used_bytes},
            catalogue.L1_CAPACITY: {(): index.pool.capacity_bytes},
            catalogue.L1_POPULATED: {(): self._populated_bytes()},
            catalogue.L1_SLOTS: {
                ("used",): num_used_slots,
                ("free",): sum(extent.num_slots for extent in extents) - num_used_slots,
            },
            catalogue.L1_RESIDENT: {(): index.num_resident},
            catalogue.L1_PROTECTED: {(): index.num_protected},
            catalogue.L1_EVICTED: {(): index.num_evicted},
            catalogue.L1_REFUSED: {(): self._depot.num_refused_chunks},
        }

    def _who_is_there(self) -> Scalars:
        depot = self._depot
        attachments = [attachment for instance in depot.instances for attachment in instance.ranks.values()]
        mapped_bytes = sum(each.buffer.mapped_bytes for each in attachments if each.buffer is not None)
        return {
            catalogue.LEASES_LIVE: {(): len(depot.leases)},
            catalogue.SESSIONS_LIVE: {(): len(depot.sessions)},
            catalogue.INSTANCES_LIVE: {(): len(depot.instances)},
            catalogue.ATTACHMENTS_LIVE: {(): len(attachments)},
            catalogue.ATTACHMENTS_MAPPED: {(): mapped_bytes},
            catalogue.DRAINING: {(): int(self._boundary.draining)},
            catalogue.RPCS_RUNNING: {
                ("call",): self._boundary.num_running,
                ("stream",): self._boundary.num_standing,
            },
        }
