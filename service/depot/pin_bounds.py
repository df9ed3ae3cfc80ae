"""The bytes of L1 that pins hold, by tenant, and how many more they may hold."""

from __future__ import annotations

from collections import Counter

from service.l1.shares import Shares

MAX_SHARE_OF_ALL = 0.5


class PinBounds:
    """What the pins of all tenants hold. Only the event loop uses it.

    All pins together hold at most half of L1, so that stores always find slots. What a tenant pins beyond its own share
    is never a part of another tenant's share.
    """

    def __init__(self, capacity_bytes: int, shares: Shares[str]) -> None:
        self.bytes_by_tenant: Counter[str] = Counter()
        self._capacity_bytes = capacity_bytes
        self._shares = shares

    def __repr__(self) -> str:
        return f"<PinBounds {self.bytes_by_tenant.total()} of {self._capacity_bytes} bytes pinned>"

    def free_bytes(self, tenant: str) -> int:
        """Return how many more bytes a tenant may pin as far as others are concerned; at least 0."""
        pinned_bytes = self.bytes_by_tenant[tenant]
        share_bytes = self._shares.of(tenant)
        borrowed_bytes = sum(max(0, used - self._shares.of(name)) for name, used in self.bytes_by_tenant.items())
        unshared_bytes = self._capacity_bytes - self._shares.total_bytes - borrowed_bytes
        free_bytes = min(
            int(MAX_SHARE_OF_ALL * self._capacity_bytes) - self.bytes_by_tenant.total(),
            max(0, share_bytes - pinned_bytes) + max(0, unshared_bytes),
        )
        return max(0, free_bytes)
