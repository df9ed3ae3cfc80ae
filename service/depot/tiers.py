"""The tiers behind L1, as all tenants' depots use them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence

from service.depot.loading import Loading
from service.depot.tier import Tier
from service.depot.verification import Verification
from service.depot.write_behind import WriteBehind
from service.l1.index import Index
from service.tiers.write_policy import WritePolicy


class Tiers:
    """The tiers in the order in which they are asked, what loads from them, and what is written to them."""

    def __init__(self, tiers: Sequence[Tier], policy: WritePolicy, index: Index, verification: Verification) -> None:
        self.tiers = tiers
        self.loading = Loading(index, verification)
        self.write_behind = WriteBehind(tiers, policy, index)
        self._to_clear: asyncio.Queue[str] = asyncio.Queue()
        index.worth.tier_read_seconds = self._read_seconds

    def __repr__(self) -> str:
        return f"<Tiers {', '.join(tier.name for tier in self.tiers)}>"

    def __iter__(self) -> Iterator[Tier]:
        return iter(self.tiers)

    def set_tenants(self, disk_share_bytes: Mapping[str, int]) -> None:
        """Take all tenants that there are: see `Tier.set_tenants`."""
        for tier in self.tiers:
            tier.set_tenants(disk_share_bytes)

    async def clear(self, tenant: str | None, model_name: str, cache_salt: str | None) -> int:
        """Forget chunks in all tiers: see `Tier.clear`. Return how many that were, as far as the tiers know."""
        if not self.tiers:
            return 0
        return sum([await tier.clear(tenant, model_name, cache_salt) for tier in self.tiers])

    def clear_later(self, tenants: Iterable[str]) -> None:
        """Forget all chunks of removed tenants in all tiers, as soon as `run` gets to it."""
        for tenant in tenants if self.tiers else ():
            self._to_clear.put_nowait(tenant)

    async def run(self) -> None:
        """Serve the tiers, and clear what `clear_later` named, until the task is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for tier in self.tiers:
                tasks.create_task(tier.run(), name=f"tier {tier.name}")
            while True:
                await self.clear(await self._to_clear.get(), "", None)

    async def close(self) -> None:
        """End all tiers, at the same time. After this nothing of them touches L1."""
        await asyncio.gather(*(tier.close() for tier in self.tiers))

    def _read_seconds(self, num_bytes: int, in_tiers: int) -> float | None:
        """Return how long the quickest of these tiers would need to read so many bytes. None: none has read yet."""
        seconds = [tier.seconds_to_read(num_bytes) for tier in self.tiers if in_tiers & tier.bit]
        return min((each for each in seconds if each is not None), default=None)
