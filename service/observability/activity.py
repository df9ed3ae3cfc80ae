"""The state of the depot and of its tenants, sampled once a second for the history of activity."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from service.depot.depot import Depot
from service.depot.tenant_depots import TenantDepots
from telemetry.activity.bucket import Gauges
from telemetry.activity.subscriber import WHOLE_DEPOT, Activity
from telemetry.bus import EventBus

PERIOD_SECONDS = 1.0

ReadGauges = Callable[[], Mapping[str, Gauges]]
"""Returns the state of the whole depot and of each tenant."""


def read_gauges(depots: TenantDepots, bus: EventBus | None) -> Mapping[str, Gauges]:
    """Return the state of the whole depot and of each tenant. For the event loop."""
    index, stats = depots.index, bus.stats() if bus is not None else None
    gauges = {
        WHOLE_DEPOT: Gauges(
            l1_used_bytes=index.pool.used_bytes,
            l1_capacity_bytes=index.pool.capacity_bytes,
            num_chunks=index.num_resident,
            num_protected_chunks=index.num_protected,
            num_waiting_events=stats.depth if stats is not None else 0,
            num_dropped_events=sum(stats.num_dropped_by_type.values()) if stats is not None else 0,
            **_work(depots),
        )
    }
    tenants = [depot for depot in depots if depot.tenant]
    in_l1 = depots.chunks_and_bytes() if tenants else {}
    for depot in tenants:
        num_chunks, used_bytes = in_l1[depot.tenant]
        gauges[depot.tenant] = Gauges(num_chunks=num_chunks, l1_used_bytes=used_bytes, **_work([depot]))
    return gauges


def _work(depots: Iterable[Depot]) -> dict[str, int]:
    """Return what some tenants have, together."""
    instances = [instance for depot in depots for instance in depot.instances]
    num_attached_ranks = sum(len(instance.ranks) for instance in instances)
    return {
        "num_instances": len(instances),
        "num_attached_ranks": num_attached_ranks,
        "num_missing_ranks": sum(instance.world_size for instance in instances) - num_attached_ranks,
        "num_sessions": sum(len(depot.sessions) for depot in depots),
        "num_leases": sum(len(depot.leases) for depot in depots),
    }


class ActivitySampler:
    """A timer that notes the state in the history, once a second."""

    def __init__(self, activity: Activity, read: ReadGauges) -> None:
        self._activity = activity
        self._read = read
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._activity.sample(self._read())
        self._timer = asyncio.get_running_loop().call_later(PERIOD_SECONDS, self.start)

    def stop(self) -> None:
        """End. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
