"""Leases: time-bounded protection of chunks from eviction."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kernels.transfer import Transfer
from service.depot.chunk_index import ChunkIndex, unpinning
from service.depot.slices import Slices
from service.errors import DepotError, LeaseExpired, LeaseNotFound, LeaseReleased, LeaseRevoked
from service.l1.chunk import Chunk
from telemetry.kinds import LeaseEnd

MAX_ENDED_REMEMBERED = 16_384
MAX_EXPIRED_AT_A_TIME = 256

_ERRORS: dict[LeaseEnd, type[DepotError]] = {
    LeaseEnd.RELEASED: LeaseReleased,
    LeaseEnd.SESSION_ENDED: LeaseReleased,
    LeaseEnd.EXPIRED: LeaseExpired,
    LeaseEnd.REVOKED: LeaseRevoked,
    LeaseEnd.INSTANCE_DETACHED: LeaseRevoked,
}


@dataclass(slots=True, eq=False)
class Lease:
    """`chunks_by_rank[rank][chunk]` of one prefix from token 0, and the transfers that read them.

    `num_chunks` are those of one rank. The chunks at the positions of `from_l2` were on their way from tiers when the
    lease began. A lease that has ended has no chunks. It is remembered for a while: to say why it ended, and to stop
    its transfers.
    """

    lease_id: str
    instance_id: str
    session_id: str
    chunks_by_rank: Sequence[Sequence[Chunk]]
    expire_time: float
    expire_monotonic: float
    num_chunks: int
    from_l2: frozenset[int] = frozenset()
    end: LeaseEnd | None = None
    transfers: set[Transfer] = field(default_factory=set)

    @property
    def ended_by_engine(self) -> bool:
        """Whether the engine itself ended the lease: then the depot writes nothing to its blocks."""
        return self.end in (LeaseEnd.RELEASED, LeaseEnd.SESSION_ENDED)

    def error(self) -> DepotError:
        """Return the error of a call that uses the lease after its end."""
        assert self.end is not None
        return _ERRORS[self.end](f"lease {self.lease_id!r} has ended: {self.end}")


class Leases:
    """The live leases, oldest first; all have the same time to live. Each pins its chunks once."""

    def __init__(self, index: ChunkIndex, ttl_seconds: float, slices: Slices) -> None:
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
        """Return every live lease."""
        return self._live.values()

    def grant(
        self,
        instance_id: str,
        session_id: str,
        chunks_by_rank: Sequence[Sequence[Chunk]],
        from_l2: frozenset[int] = frozenset(),
    ) -> Lease:
        """Protect chunks until the lease ends. The lease takes over one pin of each."""
        lease = Lease(
            lease_id=secrets.token_hex(16),
            instance_id=instance_id,
            session_id=session_id,
            chunks_by_rank=chunks_by_rank,
            num_chunks=len(chunks_by_rank[0]),
            from_l2=from_l2,
            expire_time=time.time() + self._ttl_seconds,
            expire_monotonic=time.monotonic() + self._ttl_seconds,
        )
        self._live[lease.lease_id] = lease
        return lease

    def find(self, lease_id: str) -> Lease | None:
        """Return the lease, live or remembered."""
        return self._live.get(lease_id) or self._ended.get(lease_id)

    def require(self, lease_id: str, instance_id: str, session_id: str) -> Lease:
        """Return the live lease of a session.

        Raises: LeaseExpired, LeaseReleased, LeaseRevoked, LeaseNotFound.
        """
        lease = self.find(lease_id)
        if lease is None or (lease.instance_id, lease.session_id) != (instance_id, session_id):
            raise LeaseNotFound(lease_id)
        if lease.end is not None:
            raise lease.error()
        return lease

    def end(self, lease: Lease, why: LeaseEnd) -> asyncio.Future[None] | None:
        """End a live lease and unpin its chunks.

        Return a future that ends when all of them are unpinned. None: they are.
        """
        del self._live[lease.lease_id]
        lease.end = why
        self._ended[lease.lease_id] = lease
        if len(self._ended) > MAX_ENDED_REMEMBERED:
            self._ended.popitem(last=False)
        chunks_by_rank, lease.chunks_by_rank = lease.chunks_by_rank, ()
        return self._slices.run(unpinning(self._index, chunks_by_rank))

    def expired(self, now: float) -> list[Lease]:
        """Return the first overdue leases at `now` (monotonic). They live until `end` is called."""
        overdue: list[Lease] = []
        for lease in self._live.values():
            if lease.expire_monotonic > now or len(overdue) == MAX_EXPIRED_AT_A_TIME:
                break
            overdue.append(lease)
        return overdue

    def next_expiry(self) -> float | None:
        """Return when the next lease expires (monotonic)."""
        lease = next(iter(self._live.values()), None)
        return lease.expire_monotonic if lease is not None else None
