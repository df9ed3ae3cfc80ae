"""The depots of all tenants, over one L1: what one has, another can't name.

Each tenant has instances, sessions and leases of its own, in tables of its own, and so has nobody else's to find, to
end or to count. What they share is the memory: the index, in which a tenant's chunks have keys that cover its name,
and whose oldest chunk goes, whoever's it is, when room is needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from service.access.credentials import DEFAULT_TENANT, caller
from service.access.quota import Quota
from service.access.tenants import Tenant, Tenants
from service.depot.depot import Depot, DepotLimits
from service.depot.instances import TransferBackend
from service.depot.running_transfer import to_the_end
from service.depot.sessions import Sessions
from service.depot.slices import Slices
from service.depot.values import ClearAnswer
from service.l1.chunk import Chunk
from service.l1.index import CHUNKS_A_STEP, Index
from service.l1.pool import Pool
from telemetry.events import Event, Publisher


class TenantPublisher:
    """Publishes the events of one tenant."""

    def __init__(self, tenant: str, bus: Publisher) -> None:
        self._tenant = tenant
        self._bus = bus

    def publish(self, event: Event) -> None:
        """Publish a new event. An eviction may have another tenant already: that of the chunks."""
        self._bus.publish(event if event.tenant else event.of_tenant(self._tenant))


class TenantDepots:
    """A depot for each tenant, made at its first call; that of nobody in particular has no name."""

    def __init__(self, l1: memoryview, backend: TransferBackend, limits: DepotLimits, bus: Publisher | None) -> None:
        self.index = Index(Pool(len(l1)))
        self.backend = backend
        self.slices = Slices()
        self._l1 = l1
        self._limits = limits
        self._bus = bus
        self._depots: dict[str, Depot] = {}
        self.draining = False

    def __repr__(self) -> str:
        return f"<Depots of {len(self._depots)} tenants, {self.index!r}>"

    def __iter__(self) -> Iterator[Depot]:
        return iter(self._depots.values())

    def of(self, tenant: Tenant) -> Depot:
        """The tenant's depot."""
        depot = self._depots.get(tenant.name)
        if depot is None:
            bus = TenantPublisher(tenant.name, self._bus) if tenant.name and self._bus is not None else self._bus
            depot = self._depots[tenant.name] = Depot(
                self._l1,
                self.backend,
                self._limits,
                bus,
                index=self.index,
                slices=self.slices,
                quota=Quota(tenant.name, tenant.limits),
            )
            depot.draining = self.draining
        return depot

    def of_caller(self) -> Depot:
        """The depot of whoever made the call that is being served."""
        return self.of(caller.get().tenant)

    def of_default_tenant(self) -> Depot:
        """The only depot, where there are no tenants."""
        return self.of(DEFAULT_TENANT)

    def named(self, tenant: str) -> Depot | None:
        """The depot of a tenant that has called."""
        return self._depots.get(tenant)

    def sessions_of(self, tenant: str) -> Sessions | None:
        """The sessions of a tenant that has called."""
        depot = self._depots.get(tenant)
        return depot.sessions if depot is not None else None

    def set_tenants(self, tenants: Tenants) -> None:
        """Apply new limits; what a tenant that is gone has in L1 is cleared: the name may be another's one day."""
        gone = [depot for name, depot in self._depots.items() if name not in tenants.by_name]
        if gone:
            self.slices.run(self._clearing(gone, "", None, force=True, answer=ClearAnswer()))
        for name, tenant in tenants.by_name.items():
            if name in self._depots:
                self._depots[name].quota.limits = tenant.limits

    async def clear(self, tenant: str, model_name: str, cache_salt: str | None, *, force: bool) -> ClearAnswer:
        """Drop chunks of a tenant ("": of all), see `Depot.clearing`. A call that is cancelled clears to the end."""
        answer = ClearAnswer()
        depots = [depot for name, depot in self._depots.items() if tenant in ("", name)]
        cleared = self.slices.run(self._clearing(depots, model_name, cache_salt, force=force, answer=answer))
        if cleared is not None:
            await to_the_end(cleared)
        return answer

    def _clearing(
        self, depots: Sequence[Depot], model_name: str, cache_salt: str | None, *, force: bool, answer: ClearAnswer
    ) -> Iterator[None]:
        chunks: dict[str, list[Chunk]] = defaultdict(list)
        for number, chunk in enumerate(list(self.index.chunks())):
            chunks[chunk.entry.tenant].append(chunk)
            if number % CHUNKS_A_STEP == 0:
                yield
        for depot in depots:
            of_depot = chunks[depot.tenant]
            yield from depot.clearing(of_depot, model_name, cache_salt, force=force, answer=answer)

    def chunks_and_bytes(self) -> dict[str, tuple[int, int]]:
        """Of each tenant that has called, its chunks in L1 and the bytes of their slots."""
        return dict.fromkeys(self._depots, (0, 0)) | self.index.chunks_and_bytes_by_tenant()

    def drain(self) -> None:
        """Say that the depots shut down."""
        self.draining = True
        for depot in self:
            depot.draining = True

    def stop(self) -> None:
        """End the timers; the depots are used no more."""
        for depot in self:
            depot.stop()
