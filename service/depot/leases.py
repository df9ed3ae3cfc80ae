"""Leases: time-bounded protection of chunks from eviction."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from service.depot.running_transfer import RunningTransfer
from service.depot.slices import Slices
from service.errors import DepotError, LeaseExpired, LeaseNotFound, LeaseReleased, LeaseRevoked
from service.l1.chunk import Chunk
from service.l1.index import Index
from telemetry.kinds import LeaseEnd

MAX_ENDED_REMEMBERED = 16_384
ENDS_AT_ONCE = 256


_ERRORS: dict[LeaseEnd, type[DepotError]] = {
    LeaseEnd.RELEASED: LeaseReleased,
    LeaseEnd.SESSION_ENDED: LeaseReleased,
    LeaseEnd.EXPIRED: LeaseExpired,
    LeaseEnd.REVOKED: LeaseRevoked,
    LeaseEnd.INSTANCE_DETACHED: LeaseRevoked,
}


@dataclass(slots=True, eq=False)
class Lease:
    """Chunks of one prefix, for each rank from token 0, and the transfers that read them now.

    `num_chunks` are those of one rank. When the lease has ended it holds no chunks any more, but is still remembered
    for a while: to say why it ended, and to stop the transfers that outlive it.
    """

    lease_id: str
    instance_id: str
    session_id: str
    chunks_by_rank: Sequence[Sequence[Chunk]]
    expire_time: float
    expire_monotonic: float
    num_chunks: int
    end: LeaseEnd | None = None
    transfers: set[RunningTransfer] = field(default_factory=set)

    @property
    def given_back(self) -> bool:
        """Whether whoever held it said that it is not needed any more."""
        return self.end in (LeaseEnd.RELEASED, LeaseEnd.SESSION_ENDED)

    def error(self) -> DepotError:
        """What a caller is told who uses the lease after its end."""
        assert self.end is not None
        return _ERRORS[self.end](f"lease {self.lease_id!r} has ended: {self.end}")


class Leases:
    """The leases that live, oldest first; all have the same time to live. Each pins its chunks once."""

    def __init__(self, index: Index, ttl_seconds: float, slices: Slices) -> None:
        self._index = index
        self._slices = slices
        self._ttl_seconds = ttl_seconds
        self._live: OrderedDict[str, Lease] = OrderedDict()
        self._ended: OrderedDict[str, Lease] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live)

    def __repr__(self) -> str:
        return f"<Leases {len(self._live)} live>"

    def live(self) -> Iterable[Lease]:
        """Every lease that lives."""
        return self._live.values()

    def grant(self, instance_id: str, session_id: str, chunks_by_rank: Sequence[Sequence[Chunk]]) -> Lease:
        """Protect chunks until the lease ends, which takes over one pin of each from the caller."""
        lease = Lease(
            lease_id=secrets.token_hex(16),
            instance_id=instance_id,
            session_id=session_id,
            chunks_by_rank=chunks_by_rank,
            num_chunks=len(chunks_by_rank[0]),
            expire_time=time.time() + self._ttl_seconds,
            expire_monotonic=time.monotonic() + self._ttl_seconds,
        )
        self._live[lease.lease_id] = lease
        return lease

    def find(self, lease_id: str) -> Lease | None:
        """The lease, live or remembered."""
        return self._live.get(lease_id) or self._ended.get(lease_id)

    def require(self, lease_id: str, instance_id: str, session_id: str) -> Lease:
        """The lease of this session.

        Raises: LeaseExpired, LeaseReleased or LeaseRevoked if it has ended, LeaseNotFound if it is unknown or not of
            this session.
        """
        lease = self.find(lease_id)
        if lease is None or (lease.instance_id, lease.session_id) != (instance_id, session_id):
            raise LeaseNotFound(lease_id)
        if lease.end is not None:
            raise lease.error()
        return lease

    def end(self, lease: Lease, why: LeaseEnd) -> asyncio.Future[None] | None:
        """End a lease that lives; its chunks may be evicted, once no transfer reads them.

        Returns a future that ends when all of them are unpinned; None if they are.
        """
        del self._live[lease.lease_id]
        lease.end = why
        self._ended[lease.lease_id] = lease
        if len(self._ended) > MAX_ENDED_REMEMBERED:
            self._ended.popitem(last=False)
        chunks_by_rank, lease.chunks_by_rank = lease.chunks_by_rank, ()
        return self._slices.run(self._index.unpinning(chunks_by_rank))

    def expired(self, now: float) -> list[Lease]:
        """The first leases whose time is over at `now` (monotonic); they live until `end` is called."""
        over: list[Lease] = []
        for lease in self._live.values():
            if lease.expire_monotonic > now or len(over) == ENDS_AT_ONCE:
                break
            over.append(lease)
        return over

    def next_expiry(self) -> float | None:
        """When the next lease expires (monotonic)."""
        lease = next(iter(self._live.values()), None)
        return lease.expire_monotonic if lease is not None else None
