"""The depots of all tenants, over one L1.

Each tenant has its own tables of instances, sessions and leases, so that no call can find, end or count another
tenant's. The tenants share L1 and its index. The keys of a tenant's chunks cover its name. The oldest chunk is evicted
first, whichever tenant stored it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from uuid import uuid4

from service.access.credentials import DEFAULT_TENANT, WITHOUT_LIMIT, caller
from service.access.quota import Quota
from service.access.tenants import Tenant, Tenants
from service.depot.chunk_index import CHUNKS_PER_STEP
from service.depot.clear import ClearCounts, clearing
from service.depot.depot import Depot, DepotLimits
from service.depot.instances import TransferBackend
from service.depot.naming import ChunkNamer
from service.depot.pin_bounds import PinBounds
from service.depot.recording import RequestRecorder
from service.depot.running_transfer import to_the_end
from service.depot.scrub import Scrub
from service.depot.sessions import Sessions
from service.depot.slices import Slices
from service.depot.tiers import Tiers
from service.depot.verification import Verification
from service.l1.chunk import Chunk
from service.l1.eviction.policy_name import PolicyName
from service.l1.index import Index
from service.l1.pool import Pool
from service.tiers.write_policy import WritePolicy
from service.units import format_size
from telemetry.events import Event, EvictionPolicyChanged, Publisher

logger = logging.getLogger(__name__)


class TenantPublisher:
    """A publisher of one tenant's events."""

    def __init__(self, tenant: str, bus: Publisher) -> None:
        self._tenant = tenant
        self._bus = bus

    def publish(self, event: Event) -> None:
        """Publish a new event. An eviction keeps its tenant, which is that of the chunks."""
        self._bus.publish(event if event.tenant else event.of_tenant(self._tenant))


class TenantDepots:
    """A depot for each tenant, made at its first call or for its adopted chunks. The default tenant has no name.

    `incarnation` is unique to this start of the depot. `num_adopted_chunks_by_tenant` counts the chunks that it took
    over from the process before it. `tiers` are those behind L1, in their order.
    """

    def __init__(
        self,
        l1: memoryview,
        backend: TransferBackend,
        limits: DepotLimits,
        bus: Publisher | None,
        index: Index | None = None,
        *,
        verification: Verification | None = None,
        tiers: Tiers | None = None,
        slices: Slices | None = None,
        recorder: RequestRecorder | None = None,
        namer: ChunkNamer | None = None,
    ) -> None:
        self.index = index or Index(Pool(len(l1)))
        self.backend = backend
        self.slices = slices or Slices()
        self.incarnation = uuid4().hex
        self.num_adopted_chunks_by_tenant: dict[str, int] = {}
        self.verification = verification or Verification(limits.verify, self.index, bus)
        self.tiers = tiers or Tiers((), WritePolicy.NONE, self.index, self.verification)
        self.scrub = Scrub(self.index, self.verification, backend, self.slices, limits.scrub_bytes_per_second)
        self.index.uses.on_policy_change = self._publish_policy
        self.index.ghosts.tier_capacities = self._tier_capacities
        self.pin_bounds = PinBounds(self.index.capacity_bytes, self.index.shares)
        self._l1 = l1
        self._limits = limits
        self._bus = bus
        self._recorder = recorder
        self._namer = namer
        self._depots: dict[str, Depot] = {}
        self._tenant_names: frozenset[str] = frozenset()
        self.draining = False

    def __repr__(self) -> str:
        return f"<Depots of {len(self._depots)} tenants, {self.index!r}>"

    def __iter__(self) -> Iterator[Depot]:
        return iter(self._depots.values())

    def of(self, tenant: Tenant) -> Depot:
        """Return the tenant's depot."""
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
                verification=self.verification,
                tiers=self.tiers,
                pin_bounds=self.pin_bounds,
                quota=Quota(tenant.name, tenant.limits),
                recorder=self._recorder,
                namer=self._namer,
            )
            depot.draining = self.draining
        return depot

    def of_caller(self) -> Depot:
        """Return the depot of the tenant whose call is being served."""
        return self.of(caller.get().tenant)

    def of_default_tenant(self) -> Depot:
        """Return the default tenant's depot: the only one, if there are no tenants."""
        return self.of(DEFAULT_TENANT)

    def named(self, tenant: str) -> Depot | None:
        """Return the depot of a tenant that has called."""
        return self._depots.get(tenant)

    def sessions_of(self, tenant: str) -> Sessions | None:
        """Return the sessions of a tenant that has called."""
        depot = self._depots.get(tenant)
        return depot.sessions if depot is not None else None

    def set_tenants(self, tenants: Tenants) -> None:
        """Apply new limits and shares, and clear and zero the chunks of all other tenants.

        Their names may be given to others. A tenant whose chunks were adopted gets its depot now, so that an admin can
        clear them.
        """
        self.index.shares.set(
            {name: tenant.l1_share_bytes for name, tenant in tenants.by_name.items() if tenant.l1_share_bytes}
        )
        self.tiers.set_tenants({name: tenant.disk_share_bytes for name, tenant in tenants.by_name.items()})
        in_l1 = self.index.chunks_and_bytes_by_tenant()
        for name, tenant in tenants.by_name.items():
            if name in self._depots or name in in_l1:
                self.of(tenant).quota.limits = tenant.limits
        for name in in_l1.keys() - tenants.by_name.keys():
            self.of(Tenant(name=name, is_admin=False, limits=WITHOUT_LIMIT))
        for name, depot in self._depots.items():
            depot.is_removed = name not in tenants.by_name
        removed = [depot for depot in self if depot.is_removed]
        left = self._tenant_names - tenants.by_name.keys()  # also those that have not called
        self._tenant_names = frozenset(tenants.by_name)
        self.tiers.clear_later(left | {depot.tenant for depot in removed})
        if not removed:
            return
        for name in sorted(in_l1.keys() - tenants.by_name.keys()):
            num_chunks, num_bytes = in_l1[name]
            what = f"the tenant {name!r}, which is not in the file of tenants," if name else "callers without a tenant"
            logger.info("%d chunks of %s leave L1, and %s are zeroed", num_chunks, what, format_size(num_bytes))
        self.slices.run(self._clearing(removed, "", None, force=True, zero=True, counts=ClearCounts()))

    async def clear(self, tenant: str, model_name: str, cache_salt: str | None, *, force: bool) -> ClearCounts:
        """Clear chunks of a tenant ("": of all) in L1, see `clearing`, and in the tiers.

        A cancelled call still clears L1 to the end.
        """
        counts = ClearCounts()
        depots = [depot for name, depot in self._depots.items() if tenant in ("", name)]
        cleared = self.slices.run(self._clearing(depots, model_name, cache_salt, force=force, counts=counts))
        if cleared is not None:
            await to_the_end(cleared)
        counts.num_cleared_in_tiers = await self.tiers.clear(tenant or None, model_name, cache_salt)
        return counts

    def _publish_policy(self, before: PolicyName, after: PolicyName) -> None:
        if self._bus is not None:
            self._bus.publish(EvictionPolicyChanged(policy=after, previous_policy=before))

    def _tier_capacities(self) -> Sequence[tuple[str, int | None]]:
        return [(tier.name, tier.snapshot().capacity_bytes) for tier in self.tiers]

    def _clearing(
        self,
        depots: Sequence[Depot],
        model_name: str,
        cache_salt: str | None,
        *,
        force: bool,
        zero: bool = False,
        counts: ClearCounts,
    ) -> Iterator[None]:
        chunks: dict[str, list[Chunk]] = defaultdict(list)
        for number, chunk in enumerate(list(self.index.chunks())):
            chunks[chunk.namespace_stats.tenant].append(chunk)
            if number % CHUNKS_PER_STEP == 0:
                yield
        for depot in depots:
            of_tenant = chunks[depot.tenant]
            yield from clearing(depot, of_tenant, model_name, cache_salt, force=force, zero=zero, counts=counts)

    def chunks_and_bytes(self) -> dict[str, tuple[int, int]]:
        """Return, for each tenant that has called, the number of its chunks in L1 and the bytes of their slots."""
        return dict.fromkeys(self._depots, (0, 0)) | self.index.chunks_and_bytes_by_tenant()

    def set_draining(self, draining: bool) -> None:
        """Note whether the depots shut down."""
        self.draining = draining
        for depot in self:
            depot.draining = draining

    def stop(self) -> None:
        """Stop the timers for good."""
        for depot in self:
            depot.stop()
