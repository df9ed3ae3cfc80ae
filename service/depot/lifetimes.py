"""The beginnings and ends of sessions and leases. A lease ends with its session, by a call, or by time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import numpy as np

from service.depot.due_timer import DueTimer
from service.depot.leases import Lease, Leases
from service.depot.recording import RequestEnded, RequestRecorder
from service.depot.running_transfer import stopped, to_the_end
from service.depot.sessions import Session, Sessions
from service.depot.slices import Slices
from service.depot.trace_context import traceparent
from service.l1.chunk import Chunk
from telemetry.events import ChunksReused, LeaseEnded, LeaseGranted, Publisher, SessionEnded, SessionStarted
from telemetry.kinds import LeaseEnd, SessionEnd, Tier


class Lifetimes:
    """The beginnings and ends of one tenant's sessions and leases, each with its event."""

    def __init__(
        self,
        leases: Leases,
        sessions: Sessions,
        slices: Slices,
        bus: Publisher,
        recorder: RequestRecorder | None = None,
    ) -> None:
        self._leases = leases
        self._sessions = sessions
        self._slices = slices
        self._bus = bus
        self._recorder = recorder
        self._timer = DueTimer(self._on_due)

    def session(self, instance_id: str, session_id: str, model_name: str) -> Session:
        """Return the instance's session for an operation. Begin it if there is none.

        Raises: TooManySessions.
        """
        session = self._sessions.find(instance_id, session_id)
        victim = self._sessions.victim_for(session)
        if victim is not None:
            self.close_session(victim, SessionEnd.IDLE)
        if session is None:
            session = self._sessions.begin(instance_id, session_id, model_name)
            self._publish_started(session)
        return session

    def report_session(self, instance_id: str, session_id: str, model_name: str) -> None:
        """Note a report of a session's blocks. Begin the session if there is none.

        A report never changes what the cache does: a session that uses the cache neither ends nor lives longer by it.
        """
        session = self._sessions.find(instance_id, session_id)
        if session is not None:
            self._sessions.reported(session)
            return
        victim = self._sessions.victim_for_report()
        if victim is not None:
            self.close_session(victim, SessionEnd.IDLE)
        self._publish_started(self._sessions.begin_reported(instance_id, session_id, model_name))

    def grant(
        self,
        session: Session,
        chunks_by_rank: Sequence[Sequence[Chunk]],
        idle_since: Sequence[float],
        from_l2: frozenset[int] = frozenset(),
    ) -> Lease:
        """Lease the chunks of a prefix to a session. The lease takes over one pin of each.

        `idle_since` has the release times of the chunks that had no other pin (monotonic). The chunks at the positions
        of `from_l2` are on their way from tiers.
        """
        if idle_since:
            self._bus.publish(
                ChunksReused(
                    model_name=session.model_name,
                    tier=Tier.L1,
                    reuse_gap_seconds=time.monotonic() - np.array(idle_since),
                )
            )
        lease = self._leases.grant(session.instance_id, session.session_id, chunks_by_rank, from_l2)
        session.lease_ids.add(lease.lease_id)
        self._timer.call_by(lease.expire_monotonic)
        self._bus.publish(
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
        """Return the live lease of a session. End it if it is overdue.

        Raises: LeaseExpired, LeaseReleased, LeaseRevoked, LeaseNotFound.
        """
        lease = self._leases.find(lease_id)
        if lease is not None and lease.end is None and lease.expire_monotonic <= time.monotonic():
            self.end_lease(lease, LeaseEnd.EXPIRED)
        return self._leases.require(lease_id, instance_id, session_id)

    def end_lease(self, lease: Lease, why: LeaseEnd) -> asyncio.Future[None] | None:
        """End a live lease. Its transfers go on: they have pins of their own.

        Return a future that ends when all its chunks are unpinned. None: they are.
        """
        unpinned = self._leases.end(lease, why)
        session = self._sessions.find(lease.instance_id, lease.session_id)
        if session is not None:
            session.lease_ids.discard(lease.lease_id)
            self._sessions.used(session)
        self._bus.publish(
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
        """End a lease, unless it has ended, and stop its transfers. Do nothing for an unknown one."""
        lease = self._leases.find(lease_id)
        if lease is None:
            return
        unpinned = self.end_lease(lease, LeaseEnd.RELEASED) if lease.end is None else None
        await stopped(list(lease.transfers))
        if unpinned is not None:
            await to_the_end(unpinned)

    async def end_session(self, instance_id: str, session_id: str) -> Session:
        """End a session and its leases, and stop its transfers.

        Raises: SessionNotFound.
        """
        session = self._sessions.require(instance_id, session_id)
        unpinned = self.close_session(session, SessionEnd.REQUESTED)
        await stopped(list(session.transfers))
        while unpinned:
            await to_the_end(unpinned.pop(0))
        return session

    def close_session(self, session: Session, why: SessionEnd) -> list[asyncio.Future[None]]:
        """End a session and its leases. Its transfers go on.

        Return futures to wait for, one after the other: the list grows meanwhile. Then all its chunks are unpinned.
        """
        unpinned: list[asyncio.Future[None]] = []
        leases_ended = self._slices.run(self._ending_leases(session, unpinned))
        if leases_ended is not None:
            unpinned.insert(0, leases_ended)
        self._sessions.end(session, why)
        if self._recorder is not None and session.request:
            self._recorder.note(RequestEnded(request=session.request))
        self._bus.publish(
            SessionEnded(
                instance_id=session.instance_id,
                session_id=session.session_id,
                model_name=session.model_name,
                reason=why,
                duration_seconds=session.duration_seconds,
                num_operations=len(session.operations) + session.num_dropped_operations,
            )
        )
        return unpinned

    def expire(self) -> None:
        """End overdue leases and idle sessions, as many as a slice has time for.

        A session that is still reported lives on for its reports, without leases.
        """
        now = time.monotonic()
        pace = self._slices.pace()
        for lease in self._leases.expired(now):
            self.end_lease(lease, LeaseEnd.EXPIRED)
            if pace.is_over():
                return
        for session in self._sessions.idle(now):
            if self._sessions.is_reported(session, now):
                self._slices.run(self._ending_leases(session, []))
                self._sessions.leave_to_reports(session)
            else:
                self.close_session(session, SessionEnd.IDLE)
            if pace.is_over():
                return

    def stop(self) -> None:
        """Stop the timer for good."""
        self._timer.stop()

    def _publish_started(self, session: Session) -> None:
        self._timer.call_by(self._sessions.idle_at(session))
        self._bus.publish(
            SessionStarted(
                instance_id=session.instance_id,
                session_id=session.session_id,
                model_name=session.model_name,
                traceparent=traceparent.get(),
            )
        )

    def _ending_leases(self, session: Session, unpinned: list[asyncio.Future[None]]) -> Iterator[None]:
        """End a session's leases, one a step."""
        for lease_id in list(session.lease_ids):
            lease = self._leases.find(lease_id)
            if lease is not None and lease.end is None:
                chunks_unpinned = self.end_lease(lease, LeaseEnd.SESSION_ENDED)
                if chunks_unpinned is not None:
                    unpinned.append(chunks_unpinned)
                yield

    def _on_due(self) -> None:
        self.expire()
        for moment in (self._leases.next_expiry(), self._sessions.next_idle()):
            if moment is not None:
                self._timer.call_by(moment)
