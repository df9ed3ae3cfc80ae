"""What leaves a local tier because it was cleared, or because its tenant is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from service.l1.keys import ChunkKey
from service.tiers.clears.erasing import Erasing
from service.tiers.clears.forgotten import Cleared
from service.tiers.local_index import LocalIndex
from service.tiers.record import OwnerTag, name_tag

logger = logging.getLogger(__name__)

CHUNKS_PER_STEP = 256


class LocalClears:
    """Clears a local tier. `is_writing` says whether an I/O worker writes the chunk of a key."""

    def __init__(self, tier: str, index: LocalIndex, erasing: Erasing, is_writing: Callable[[ChunkKey], bool]) -> None:
        self._tier = tier
        self._index = index
        self._erasing = erasing
        self._is_writing = is_writing
        self._early: list[Cleared] | None = []
        """Clears from before it was known what the tier has. None: it is known."""
        self._tenants: frozenset[bytes] | None = None
        """The tags of all tenants. None: not known, so that chunks of any tenant are kept."""

    def set_tenants(self, share_bytes: Mapping[str, int]) -> None:
        """Take all tenants that there are, with their shares: 0 for a tenant without one."""
        tags = {name_tag(tenant): share for tenant, share in share_bytes.items()}
        self._tenants = frozenset(tags)
        self._index.shares.set({tag: share for tag, share in tags.items() if share})

    async def clear(self, cleared: Cleared) -> int:
        """Make chunks invisible, and have their records erased. Return how many."""
        if self._early is not None:
            self._early.append(cleared)
        return await self._remove(cleared.matches)

    async def clear_adopted(self) -> None:
        """Clear what was adopted: what was cleared before that, and all chunks of tenants that are gone.

        The names of these tenants may be given to others.
        """
        while self._early:
            await self._remove(self._early.pop(0).matches)
        num_chunks = await self._remove(lambda owner: self._tenants is not None and owner.tenant not in self._tenants)
        if num_chunks:
            logger.info("tier %s forgets %d chunks of tenants that are gone", self._tier, num_chunks)
        self._early = None

    async def _remove(self, matches: Callable[[OwnerTag], bool]) -> int:
        num_removed = 0
        for number, key in enumerate(self._index.matching(matches)):
            if not self._is_writing(key):  # else it is erased when it is written
                num_removed += self._erasing.erase(key, key)
            if number % CHUNKS_PER_STEP == CHUNKS_PER_STEP - 1:
                await asyncio.sleep(0)  # other calls have their turn
        return num_removed
