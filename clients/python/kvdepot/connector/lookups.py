"""Lookups of one scheduler: sent on the event loop, answered when the scheduler looks again.

Calls of one session stay in order: a session ends after its lookups are answered, so that none begins it anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import NamedTuple

from kvdepot.aio.client import AsyncDepotClient
from kvdepot.connector.event_loop import BackgroundTasks, EventLoop
from kvdepot.connector.session_ids import SessionIds
from kvdepot.errors import DepotError
from kvdepot.rpc import traceparent
from kvdepot.v1 import cache_pb2
from kvdepot.v1.cache_pb2 import Lease, LookupResponse, Prefix

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 10.0
NOTIFY_SECONDS = 5.0
MAX_RPCS = 64
# The depot has not got the chunk behind the match, and does not get it in a moment.
ABSENT = {
    cache_pb2.MISS_REASON_NEVER_STORED,
    cache_pb2.MISS_REASON_EVICTED,
    cache_pb2.MISS_REASON_CLEARED,
    cache_pb2.MISS_REASON_UNKNOWN_IDENTITY,
    cache_pb2.MISS_REASON_CORRUPT,
}


@dataclass(slots=True, eq=False)
class PendingLookup:
    """One lookup. The event loop fills it in, `matched_tokens` last: then all other fields are set.

    The leases belong to the owner of the lookup, until `DepotLookupClient.release`. The answer is valid until
    `lease_until` (monotonic), when half of the leases' time is over; without leases it stays valid. `noticed` is
    when the scheduler first saw the answer (monotonic).

    `l2_tokens` of the match come from tiers behind L1. `is_absent`: the depot has not got the chunk behind the match.
    `failed`: there is no answer.
    """

    deadline: float
    matched_tokens: int | None = None
    leases: tuple[str, ...] = ()
    lease_until: float = math.inf
    given_up: bool = False
    noticed: float | None = None
    l2_tokens: int = 0
    is_absent: bool = False
    failed: bool = False


class _Question(NamedTuple):
    session_id: str
    prefix: Prefix
    computed_tokens: int
    parent: str
    prefill_rate: float | None
    will_continue: bool | None


class DepotLookupClient:
    """The calls of one scheduler: lookups, releases of leases, ends of sessions. Its public methods never block.

    An engine that holds its KV several times is as many instances, and a prefix must match in all of them. After a
    failure it pauses, longer each time, so that a slow or absent depot costs the engine very little. The depot may wait
    `max_wait_seconds` for chunks that are being stored, and for states that come from tiers.
    """

    def __init__(
        self,
        client: AsyncDepotClient,
        loop: EventLoop,
        instance_ids: Sequence[str],
        *,
        timeout_seconds: float,
        max_wait_seconds: float = 0.0,
    ) -> None:
        self._client = client
        self._loop = loop
        self._instance_ids = instance_ids
        self._timeout_seconds = timeout_seconds
        self._max_wait_seconds = max_wait_seconds
        self._rpc_slots = asyncio.Semaphore(MAX_RPCS)
        self._tasks = BackgroundTasks()
        self._lookups_by_session: dict[str, set[asyncio.Task[None]]] = {}
        self._session_ids = SessionIds()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._paused_until = 0.0

    @property
    def paused(self) -> bool:
        """Whether a lookup failed a short time ago, so that none should be made."""
        return time.monotonic() < self._paused_until

    def open_session(self, request_id: str) -> str:
        """Return a session id for a request; no other open session has it."""
        return self._session_ids.open(request_id)

    def begin(
        self,
        session_id: str,
        prefix: Prefix,
        computed_tokens: int,
        parent: str,
        prefill_rate: float | None = None,
        will_continue: bool | None = None,
    ) -> PendingLookup:
        """Begin to look up the longest stored prefix; `parent` is the caller's traceparent.

        `prefill_rate` is how many tokens the engine computes in a second. None: it does not know. `will_continue` is
        described at `RequestTraits`.
        """
        lookup = PendingLookup(deadline=time.monotonic() + self._timeout_seconds)
        question = _Question(session_id, prefix, computed_tokens, parent, prefill_rate, will_continue)
        self._loop.call(self._begin, lookup, question)
        return lookup

    def give_up(self, lookup: PendingLookup) -> None:
        """Give up a lookup, answered or not, and release its leases."""
        self._loop.call(self._give_up, lookup)

    def release(self, leases: Sequence[str]) -> None:
        """Release leases."""
        if leases:
            self._loop.call(self._start_release, tuple(leases))

    def end_session(self, session_id: str) -> None:
        """End the session of a request in the depot."""
        self._loop.call(self._tasks.start, self._end(session_id))

    def forget_session(self, session_id: str) -> None:
        """Free the id of a session that the depot never knew."""
        self._session_ids.close(session_id)

    def _begin(self, lookup: PendingLookup, question: _Question) -> None:
        task = self._tasks.start(self._look_up(lookup, question))
        self._lookups_by_session.setdefault(question.session_id, set()).add(task)
        task.add_done_callback(lambda _: self._answered(question.session_id, task))

    def _answered(self, session_id: str, task: asyncio.Task[None]) -> None:
        running = self._lookups_by_session[session_id]
        running.discard(task)
        if not running:
            del self._lookups_by_session[session_id]

    def _give_up(self, lookup: PendingLookup) -> None:
        lookup.given_up = True
        if lookup.matched_tokens is not None:
            self._start_release(lookup.leases)

    def _start_release(self, leases: tuple[str, ...]) -> None:
        if leases:
            self._tasks.start(self._release(leases))

    async def _look_up(self, lookup: PendingLookup, question: _Question) -> None:
        traceparent.set(question.parent)  # a context variable of this task only
        matched_tokens, leases = 0, tuple[Lease, ...]()
        try:
            async with self._rpc_slots:
                answers = await asyncio.gather(*(self._call(lookup, each, question) for each in self._instance_ids))
            found = [answer for answer in answers if answer is not None]
            leases = tuple(answer.lease for answer in found if answer.HasField("lease"))
            if len(found) == len(self._instance_ids):
                shortest = min(found, key=lambda answer: answer.matched_tokens)
                matched_tokens, lookup.l2_tokens = shortest.matched_tokens, shortest.l2_tokens
                lookup.is_absent = shortest.HasField("miss") and shortest.miss.reason in ABSENT
            else:
                lookup.failed = True
        finally:
            if len(leases) < len(self._instance_ids):  # not all replicas have the prefix
                self._start_release(tuple(lease.lease_id for lease in leases))
                leases = ()
            lookup.leases = tuple(lease.lease_id for lease in leases)
            left_seconds = [lease.expire_time.ToDatetime(UTC).timestamp() - time.time() for lease in leases]
            lookup.lease_until = time.monotonic() + min(left_seconds, default=math.inf) / 2
            lookup.matched_tokens = matched_tokens
            if lookup.given_up:
                self._start_release(lookup.leases)

    async def _call(self, lookup: PendingLookup, instance_id: str, question: _Question) -> LookupResponse | None:
        left_seconds = lookup.deadline - time.monotonic()  # waiting for an RPC slot has used some of the time
        if lookup.given_up or left_seconds <= 0:
            return None
        try:
            answer = await self._client.lookup(
                instance_id,
                question.session_id,
                question.prefix,
                computed_tokens=question.computed_tokens,
                max_wait_seconds=min(self._max_wait_seconds, left_seconds / 2),
                prefill_tokens_per_second=question.prefill_rate,
                will_continue=question.will_continue,
                timeout_seconds=left_seconds,
            )
        except DepotError as error:
            if not self.paused:
                self._paused_until = time.monotonic() + self._pause_seconds
                self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)
                logger.warning("a lookup failed, the next one is made later: %s", error)
            return None
        self._pause_seconds = FIRST_PAUSE_SECONDS
        return answer

    async def _release(self, leases: tuple[str, ...]) -> None:
        for lease in leases:
            await self._notify(self._client.release_lease(lease, timeout_seconds=NOTIFY_SECONDS))

    async def _end(self, session_id: str) -> None:
        try:
            if running := self._lookups_by_session.get(session_id):
                await asyncio.wait(running)
            for instance_id in self._instance_ids:
                await self._notify(self._client.end_session(instance_id, session_id, timeout_seconds=NOTIFY_SECONDS))
        finally:
            self._session_ids.close(session_id)

    async def _notify(self, call: Awaitable[object]) -> None:
        """Make a call that may fail: leases and sessions also end by themselves."""
        try:
            async with self._rpc_slots:
                await call
        except DepotError as error:
            logger.debug("a lease or a session was not ended: %s", error)
