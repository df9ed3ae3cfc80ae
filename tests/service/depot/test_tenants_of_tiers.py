"""Tenants that come, leave and have shares: what the tiers behind L1 get to know of it."""

from __future__ import annotations

import asyncio

from service.access.credentials import WITHOUT_LIMIT
from service.access.tenants import Tenant, Tenants
from service.depot.depot import DepotLimits
from service.depot.tenant_depots import TenantDepots
from service.depot.tiers import Tiers
from service.depot.verification import Verification
from service.l1.index import Index
from service.l1.pool import Pool
from service.tiers.write_policy import WritePolicy
from tests.fakes.tier import FakeTier
from tests.fakes.waiting import eventually

L1_BYTES = 1 << 16


class NoBackend:
    """A backend that has nothing to do: no engine is attached."""


class ClearedTier(FakeTier):
    """A tier that notes whose chunks were cleared."""

    def __init__(self) -> None:
        super().__init__(memoryview(b""))
        self.cleared: list[str | None] = []

    async def clear(self, tenant: str | None, model_name: str, cache_salt: str | None) -> int:
        self.cleared.append(tenant)
        return 0


def tenants(**disk_share_bytes: int) -> Tenants:
    return Tenants(
        Tenant(name=name, is_admin=False, limits=WITHOUT_LIMIT, disk_share_bytes=share_bytes)
        for name, share_bytes in disk_share_bytes.items()
    )


async def test_tiers_know_all_tenants_and_clear_those_that_leave_also_if_they_never_called() -> None:
    tier = ClearedTier()
    index = Index(Pool(L1_BYTES))
    verification = Verification(DepotLimits().verify, index, None)
    tiers = Tiers([tier], WritePolicy.NONE, index, verification)
    l1 = memoryview(bytearray(L1_BYTES))
    depots = TenantDepots(
        l1,
        NoBackend(),  # type: ignore[arg-type]
        DepotLimits(),
        None,
        index,
        verification=verification,
        tiers=tiers,
    )
    depots.set_tenants(tenants(red=7, blue=0))
    assert tier.tenants == {"red": 7, "blue": 0}
    running = asyncio.create_task(tiers.run())
    depots.set_tenants(tenants(blue=5))
    assert tier.tenants == {"blue": 5}
    await eventually(lambda: tier.cleared == ["red"])
    depots.set_tenants(tenants(blue=5, red=0))
    assert tier.tenants == {"blue": 5, "red": 0}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert tier.cleared == ["red"]
