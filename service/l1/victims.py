"""The choice of the chunks that leave L1 for a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.l1.chunk import Chunk
from service.l1.eviction.order import EvictionOrder
from service.l1.pool import Pool, Slot
from service.l1.runs import Runs
from service.l1.shares import Shares


class Victims:
    """Chooses chunks that leave, by the order of eviction and the shares of tenants. It removes none."""

    def __init__(self, order: EvictionOrder, shares: Shares[str]) -> None:
        self._order = order
        self._shares = shares
        self._runs = Runs(order)

    def __repr__(self) -> str:
        return f"<Victims by {self._order!r}>"

    def note_unprotected(self) -> None:
        """Note that a slot may go that could not go before."""
        self._runs.note_unprotected()

    def for_slot(
        self,
        pool: Pool[Chunk],
        slot_bytes: int,
        tenant: str,
        used_bytes_by_tenant: Mapping[str, int],
        unprotected_bytes: int,
    ) -> tuple[Sequence[Slot[Chunk]], list[Chunk]] | None:
        """Return neighbours to be joined, empty if one slot of this size is enough, and the chunks that leave first.

        None: no chunks can leave that give so many bytes together.
        """
        for of in self._shares.victims_for(tenant, slot_bytes, used_bytes_by_tenant):
            own = self._order.next_victim(slot_bytes, of)
            run = self._runs.find(pool, slot_bytes, own, unprotected_bytes, of)
            if run:
                leaving = [slot.occupant for slot in run if slot.occupant is not None]
                return run, self._order.with_descendants(leaving)
            if own is not None:
                return (), self._order.with_descendants([own])
        return None
