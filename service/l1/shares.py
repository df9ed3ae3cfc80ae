"""Shares: the part of L1 or of a disk that is a tenant's own. The rest is lent to the others, and taken back."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
"""What stands for a tenant: its name in L1, the tag of its name on a disk."""


class Shares(Generic[T]):
    """The shares of tenants, in bytes. A tenant without one has a share of 0.

    A tenant that is within its share loses no chunk to another one. A tenant beyond its share has borrowed: its chunks
    leave before those of tenants that are within theirs.
    """

    def __init__(self) -> None:
        self._share_bytes: Mapping[T, int] = {}

    def __bool__(self) -> bool:
        return bool(self._share_bytes)

    def __repr__(self) -> str:
        return f"<Shares of {len(self._share_bytes)} tenants>"

    @property
    def total_bytes(self) -> int:
        """All shares together."""
        return sum(self._share_bytes.values())

    def of(self, tenant: T) -> int:
        """Return the share of a tenant, in bytes."""
        return self._share_bytes.get(tenant, 0)

    def set(self, share_bytes: Mapping[T, int]) -> None:
        """Use these shares from the next slot on. Together they are no more than there is."""
        self._share_bytes = dict(share_bytes)

    def victims_for(self, tenant: T, slot_bytes: int, used_bytes: Mapping[T, int]) -> Iterator[Container[T] | None]:
        """Yield the tenants whose chunks may leave for a slot of `tenant`: first the best choice. None: all of them.

        `used_bytes` has the bytes of the slots of each tenant.
        """
        if not self._share_bytes:
            yield None
            return
        beyond = {name: used - self._share_bytes.get(name, 0) for name, used in used_bytes.items()}
        is_within = beyond.get(tenant, -self._share_bytes.get(tenant, 0)) + slot_bytes <= 0
        # A chunk leaves a tenant that has its share even without it.
        borrowers = {name for name, excess in beyond.items() if excess >= slot_bytes}
        if not is_within:
            yield borrowers | {tenant}
            return
        yield borrowers
        yield {name for name, excess in beyond.items() if excess > 0}  # of other sizes of slots
        yield {tenant}  # what others have borrowed is leased or in use
