"""The depot: the state that the operations share, and what ends leases, sessions and attachments."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from service.access.credentials import WITHOUT_LIMIT
from service.access.quota import Quota
from service.depot.instances import Instances, TransferBackend
from service.depot.leases import Lease, Leases
from service.depot.running_transfer import stopped, to_the_end
from service.depot.sessions import Operation, Session, Sessions
from service.depot.slices import Slices
from service.depot.trace_context import traceparent
from service.depot.values import ClearAnswer
from service.errors import StreamStalled, invalid
from service.l1.chunk import Chunk, NamespaceStats
from service.l1.index import CHUNKS_A_STEP, Index, RemovalReason
from service.l1.keys import Prefix
from service.l1.pool import Pool
from telemetry.events import (
    CacheCleared,
    ChunksEvicted,
    ChunksReused,
    Event,
    LeaseEnded,
    LeaseGranted,
    Publisher,
    SessionEnded,
    SessionStarted,
)
from telemetry.kinds import LeaseEnd, OperationKind, Outcome, SessionEnd, Tier

T = TypeVar("T")


class OpenPlan(Protocol):
    """A store that is under way."""

    is_cleared: bool
    """Whether what it claims from now on is to be dropped at once."""

    @property
    def entry(self) -> NamespaceStats:
        """What its chunks share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepotLimits:
    """How large chunks are, and how long things live. `max_wait_seconds` bounds every wait for somebody else."""

    chunk_size: int = 256
    lease_ttl_seconds: float = 60.0
    session_idle_timeout_seconds: float = 600.0
    max_wait_seconds: float = 30.0


class Depot:
    """L1 with its index, the leases, the sessions and the instances of one tenant. The event loop alone touches it.

    L1 and the `index` are all tenants'; the rest is this tenant's own. Alone, it is the depot of nobody in particular.

    Every method is one step, without an `await` between reading state and writing it, unless it is `async`; those
    change the state first and wait after. What may concern very many chunks, leases or sessions goes on in `slices`.
    """

    def __init__(
        self,
        l1: memoryview,
        backend: TransferBackend,
        limits: DepotLimits,
        bus: Publisher | None,
        *,
        index: Index | None = None,
        quota: Quota | None = None,
        slices: Slices | None = None,
    ) -> None:
        self.l1 = l1
        self.backend = backend
        self.limits = limits
        self.bus = bus
        self.index = index if index is not None else Index(Pool(len(l1)))
        self.quota = quota or Quota("", WITHOUT_LIMIT)
        self.tenant = self.quota.tenant
        self.slices = slices or Slices()
        self.leases = Leases(self.index, limits.lease_ttl_seconds, self.slices)
        self.sessions = Sessions(limits.session_idle_timeout_seconds)
        self.instances = Instances()
        self.open_plans: set[OpenPlan] = set()
        self.num_refused_chunks = 0
        self.draining = False
        self._operation_numbers = itertools.count(1)
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at = 0.0

    def __repr__(self) -> str:
        return f"<Depot {self.index!r}, {len(self.leases)} leases, {len(self.sessions)} sessions>"

    # What every operation begins with

    def check_prefix(self, prefix: Prefix, path: str = "") -> None:
        """Raise InvalidRequest if the prefix's block hashes don't fit this depot's chunks."""
        if prefix.hash_block_size and self.limits.chunk_size % prefix.hash_block_size:
            raise invalid(
                f"{path}prefix.hash_block_size",
                f"the depot's chunk_size {self.limits.chunk_size} is not a multiple of {prefix.hash_block_size}",
            )

    def session(self, instance_id: str, session_id: str, model_name: str) -> Session:
        """The instance's session, for an operation; it begins here if there is none. Raises: TooManySessions."""
        session = self.sessions.find(instance_id, session_id)
        in_the_way = self.sessions.in_the_way(session)
        if in_the_way is not None:
            self.close_session(in_the_way, SessionEnd.IDLE)
        if session is None:
            session = self._begun(self.sessions.begin(instance_id, session_id, model_name))
        return session

    def report_session(self, instance_id: str, session_id: str, model_name: str) -> None:
        """Note that an engine reported blocks of a session; it begins here if there is none.

        Never changes what the cache does: a session that uses the cache neither ends because of it nor lives longer.
        """
        session = self.sessions.find(instance_id, session_id)
        if session is not None:
            self.sessions.reported(session)
            return
        in_the_way = self.sessions.in_the_way_of_reports()
        if in_the_way is not None:
            self.close_session(in_the_way, SessionEnd.IDLE)
        self._begun(self.sessions.begin_reported(instance_id, session_id, model_name))

    def _begun(self, session: Session) -> Session:
        self._expire_by(self.sessions.idle_at(session))
        if self.bus is not None:
            self.bus.publish(
                SessionStarted(
                    instance_id=session.instance_id,
                    session_id=session.session_id,
                    model_name=session.model_name,
                    traceparent=traceparent.get(),
                )
            )
        return session

    @contextmanager
    def operation(
        self, session: Session, kind: OperationKind, rank: int, finished: Callable[[Operation], Event]
    ) -> Iterator[Operation]:
        """Note one operation in its session; whoever does the work sets the outcome and the counts.

        When it ends, whichever way, `finished` makes the event that is published.
        """
        operation = Operation(kind=kind, operation_id=self.new_operation_id(), rank=rank)
        session.begin(operation)
        self.sessions.used(session)
        try:
            yield operation
        except asyncio.CancelledError:
            operation.outcome = Outcome.CANCELLED
            raise
        except BaseException:
            operation.outcome = Outcome.FAILED
            raise
        finally:
            operation.duration_seconds = time.monotonic() - operation.start
            session.num_running -= 1
            self.sessions.used(session)
            if self.bus is not None:
                self.bus.publish(finished(operation))

    def new_operation_id(self) -> str:
        """Unique to one piece of work, in the life of this depot."""
        number = next(self._operation_numbers)
        return f"{self.tenant}/{number:x}" if self.tenant else f"{number:x}"

    async def bounded(self, step: Awaitable[T], what: str) -> T:
        """Wait for a client's next step in a stream, at most `max_wait_seconds`. Raises: StreamStalled."""
        try:
            async with asyncio.timeout(self.limits.max_wait_seconds):
                return await step
        except TimeoutError as error:
            raise StreamStalled(f"{what} for {self.limits.max_wait_seconds:g} seconds") from error

    # Leases

    def grant(self, session: Session, chunks_by_rank: Sequence[Sequence[Chunk]], idle_since: Sequence[float]) -> Lease:
        """Lease the chunks of a prefix, which are pinned, to a session.

        `idle_since` has the release times of those that nobody had pinned before.
        """
        if self.bus is not None and idle_since:
            self.bus.publish(
                ChunksReused(
                    model_name=session.model_name,
                    tier=Tier.L1,
                    reuse_gap_seconds=time.monotonic() - np.array(idle_since),
                )
            )
        lease = self.leases.grant(session.instance_id, session.session_id, chunks_by_rank)
        session.lease_ids.add(lease.lease_id)
        self._expire_by(lease.expire_monotonic)
        if self.bus is not None:
            self.bus.publish(
                LeaseGranted(
                    instance_id=lease.instance_id,
                    session_id=lease.session_id,
                    lease_id=lease.lease_id,
                    num_chunks=lease.num_chunks,
                    expire_time=lease.expire_time,
                )
            )
        return lease

    def require_lease(self, lease_id: str, instance_id: str, session_id: str) -> Lease:
        """The lease of this session. Raises: LeaseExpired, LeaseReleased, LeaseRevoked, LeaseNotFound."""
        lease = self.leases.find(lease_id)
        if lease is not None and lease.end is None and lease.expire_monotonic <= time.monotonic():
            self.end_lease(lease, LeaseEnd.EXPIRED)
        return self.leases.require(lease_id, instance_id, session_id)

    def end_lease(self, lease: Lease, why: LeaseEnd) -> asyncio.Future[None] | None:
        """End a lease that lives. Transfers under it go on, with the pins of their own.

        Returns a future that ends when all its chunks are unpinned; None if they are.
        """
        unpinned = self.leases.end(lease, why)
        session = self.sessions.find(lease.instance_id, lease.session_id)
        if session is not None:
            session.lease_ids.discard(lease.lease_id)
            self.sessions.used(session)
        if self.bus is not None:
            self.bus.publish(
                LeaseEnded(
                    instance_id=lease.instance_id,
                    session_id=lease.session_id,
                    lease_id=lease.lease_id,
                    reason=why,
                    num_chunks=lease.num_chunks,
                )
            )
        return unpinned

    async def release_lease(self, lease_id: str) -> None:
        """End a lease, unless it has ended, and stop the transfers under it; nothing if it is unknown."""
        lease = self.leases.find(lease_id)
        if lease is None:
            return
        unpinned = self.end_lease(lease, LeaseEnd.RELEASED) if lease.end is None else None
        await stopped(list(lease.transfers))
        if unpinned is not None:
            await to_the_end(unpinned)

    # Sessions

    async def end_session(self, instance_id: str, session_id: str) -> Session:
        """End a session and its leases, and stop its transfers. Raises: SessionNotFound."""
        session = self.sessions.require(instance_id, session_id)
        ends = self.close_session(session, SessionEnd.REQUESTED)
        await stopped(list(session.transfers))
        while ends:
            await to_the_end(ends.pop(0))
        return session

    def close_session(self, session: Session, why: SessionEnd) -> list[asyncio.Future[None]]:
        """End a session and its leases; its transfers still run.

        Returns what to wait for, one after the other, while there is any: then its chunks are unpinned.
        """
        ends: list[asyncio.Future[None]] = []
        leases_ended = self.slices.run(self._ending(session, ends))
        if leases_ended is not None:
            ends.insert(0, leases_ended)
        self.sessions.end(session, why)
        if self.bus is not None:
            self.bus.publish(
                SessionEnded(
                    instance_id=session.instance_id,
                    session_id=session.session_id,
                    model_name=session.model_name,
                    reason=why,
                    duration_seconds=session.duration_seconds,
                    num_operations=len(session.operations) + session.num_dropped_operations,
                )
            )
        return ends

    def _ending(self, session: Session, ends: list[asyncio.Future[None]]) -> Iterator[None]:
        """End the session's leases, one a step."""
        for lease_id in list(session.lease_ids):
            lease = self.leases.find(lease_id)
            if lease is not None and lease.end is None:
                unpinned = self.end_lease(lease, LeaseEnd.SESSION_ENDED)
                if unpinned is not None:
                    ends.append(unpinned)
                yield

    # Chunks

    def report_evicted(self, chunks: Sequence[Chunk]) -> None:
        """Publish that chunks were evicted, to whom they belonged, those of each model apart."""
        if self.bus is None or not chunks:
            return
        now = time.monotonic()
        for tenant, model_name in {(chunk.entry.tenant, chunk.entry.model_name) for chunk in chunks}:
            evicted = [
                chunk for chunk in chunks if (chunk.entry.tenant, chunk.entry.model_name) == (tenant, model_name)
            ]
            self.bus.publish(
                ChunksEvicted(
                    tenant=tenant,
                    model_name=model_name,
                    tier=Tier.L1,
                    keys=tuple(chunk.key for chunk in evicted),
                    num_bytes=sum(chunk.slot.size_bytes for chunk in evicted),
                    lifetime_seconds=now - np.array([chunk.store_time for chunk in evicted]),
                    idle_seconds=now - np.array([chunk.release_time for chunk in evicted]),
                )
            )

    def clearing(
        self, chunks: Sequence[Chunk], model_name: str, cache_salt: str | None, *, force: bool, answer: ClearAnswer
    ) -> Iterator[None]:
        """Drop those of this tenant's chunks that are of a model ("": of any) and a salt (None: of any), being written
        or not, in short steps; counts in `answer`.

        Pinned ones stay unless `force`: then their leases end, and their slots are freed when the transfers that read
        them are done. Of stores that are under way nothing becomes visible, whatever they claim after this began.
        """

        def matches(entry: NamespaceStats) -> bool:
            return (
                entry.tenant == self.tenant
                and model_name in ("", entry.model_name)
                and cache_salt in (None, entry.cache_salt)
            )

        for plan in self.open_plans:
            if matches(plan.entry):
                plan.is_cleared = True
        before = answer.num_cleared_chunks, answer.cleared_bytes
        for first in range(0, len(chunks), CHUNKS_A_STEP):
            for chunk in chunks[first : first + CHUNKS_A_STEP]:
                if chunk.dropped or not matches(chunk.entry):
                    continue
                if chunk.num_pins and not force:
                    answer.num_kept_chunks += 1
                    continue
                answer.num_cleared_chunks += 1
                answer.cleared_bytes += chunk.slot.size_bytes
                self.index.drop(chunk, RemovalReason.CLEARED)
            yield
        for lease in list(self.leases.live()) if force else ():
            if lease.end is None and any(chunk.dropped for leased in lease.chunks_by_rank for chunk in leased):
                self.end_lease(lease, LeaseEnd.REVOKED)
                answer.num_revoked_leases += 1
            yield
        if self.bus is not None:
            self.bus.publish(
                CacheCleared(
                    model_name=model_name,
                    cache_salt=cache_salt,
                    num_chunks=answer.num_cleared_chunks - before[0],
                    num_bytes=answer.cleared_bytes - before[1],
                    force=force,
                )
            )

    # Time

    def expire(self) -> None:
        """End leases whose time is over and sessions that were idle for too long, as many as a slice has time for.

        Transfers under a lease that expires go on: their chunks are pinned by the transfer too. A session that is still
        reported lives on for its reports; its leases end as if it had ended.
        """
        now = time.monotonic()
        pace = self.slices.pace()
        for lease in self.leases.expired(now):
            self.end_lease(lease, LeaseEnd.EXPIRED)
            if pace.is_over():
                return
        for session in self.sessions.idle(now):
            if self.sessions.is_reported(session, now):
                self.slices.run(self._ending(session, []))
                self.sessions.leave_to_reports(session)
            else:
                self.close_session(session, SessionEnd.IDLE)
            if pace.is_over():
                return

    def stop(self) -> None:
        """End the timer; the depot is used no more."""
        if self._expiry is not None:
            self._expiry.cancel()

    def _expire_by(self, moment: float) -> None:
        """Have `expire` called when a lease or a session is due (monotonic)."""
        if self._expiry is not None:
            if self._expires_at <= moment:
                return
            self._expiry.cancel()
        # At least a moment ahead: a session with a running operation may be overdue for as long as that takes.
        delay_seconds = max(moment - time.monotonic(), 0.01)
        self._expires_at = time.monotonic() + delay_seconds
        self._expiry = asyncio.get_running_loop().call_later(delay_seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._expiry = None
        self.expire()
        for moment in (self.leases.next_expiry(), self.sessions.next_idle()):
            if moment is not None:
                self._expire_by(moment)
