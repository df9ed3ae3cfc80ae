"""The scheduler's questions to the depot: asked on the event loop, answered whenever the scheduler looks again.

Calls of one session are in order: a session ends when its lookups are answered, so that none begins it anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from kvdepot.aio.client import AsyncDepotClient
from kvdepot.connector.event_loop import EventLoop
from kvdepot.connector.session_ids import SessionIds
from kvdepot.errors import DepotError
from kvdepot.rpc import traceparent
from kvdepot.v1.cache_pb2 import Lease, LookupResponse, Prefix

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
TELL_SECONDS = 5.0
MAX_RPCS = 64


@dataclass(slots=True, eq=False)
class Lookup:
    """One question. The loop fills it in; `matched_tokens` comes last, and says that the rest is there.

    What is leased belongs to whoever has the lookup, until `Lookups.release`. The answer is good until
    ``lease_until`` (monotonic), when half of the leases' time is over; one without leases does not age.
    ``noticed`` is the scheduler's: when it first saw the answer (monotonic).
    """

    deadline: float
    matched_tokens: int | None = None
    leases: tuple[str, ...] = ()
    lease_until: float = math.inf
    given_up: bool = False
    noticed: float | None = None


class Lookups:
    """Asks for one scheduler. An engine whose KV is held several times is as many instances, all of which must match.

    After a failure nothing is asked for a while, longer each time, so that a depot that is slow or away costs the
    engine next to nothing.
    """

    def __init__(
        self, client: AsyncDepotClient, loop: EventLoop, instance_ids: Sequence[str], *, timeout_seconds: float
    ) -> None:
        self._client = client
        self._loop = loop
        self._instance_ids = instance_ids
        self._timeout_seconds = timeout_seconds
        self._turns = asyncio.Semaphore(MAX_RPCS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: dict[str, set[asyncio.Task[None]]] = {}
        self._session_ids = SessionIds()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._paused_until = 0.0

    @property
    def paused(self) -> bool:
        """Whether a failure was so recent that it is better not to ask."""
        return time.monotonic() < self._paused_until

    def open_session(self, request: Any) -> str:
        """The id of a session for a request; no other that is open has it."""
        return self._session_ids.open(request)

    def begin(self, session_id: str, prefix: Prefix, computed_tokens: int, parent: str) -> Lookup:
        """Asks for the longest prefix that is stored."""
        lookup = Lookup(deadline=time.monotonic() + self._timeout_seconds)
        self._loop.call(self._begin, lookup, session_id, prefix, computed_tokens, parent)
        return lookup

    def give_up(self, lookup: Lookup) -> None:
        """Lets go of a lookup, answered or not, and of what it leases."""
        self._loop.call(self._give_up, lookup)

    def release(self, leases: Sequence[str]) -> None:
        """Gives leases back."""
        self._loop.call(self._start_release, tuple(leases))

    def end_session(self, session_id: str) -> None:
        """Tells that a request has ended."""
        self._loop.call(self._start_end, session_id)

    def drop_session(self, session_id: str) -> None:
        """Lets go of the id of a session that the depot never heard of."""
        self._session_ids.close(session_id)

    def _begin(self, lookup: Lookup, session_id: str, prefix: Prefix, computed_tokens: int, parent: str) -> None:
        asking = self._asking.setdefault(session_id, set())
        task = self._start(self._ask(lookup, session_id, prefix, computed_tokens, parent))
        asking.add(task)
        task.add_done_callback(lambda _: self._asked(session_id, task))

    def _asked(self, session_id: str, task: asyncio.Task[None]) -> None:
        asking = self._asking[session_id]
        asking.discard(task)
        if not asking:
            del self._asking[session_id]

    def _give_up(self, lookup: Lookup) -> None:
        lookup.given_up = True
        if lookup.matched_tokens is not None:
            self._start_release(lookup.leases)

    def _start_release(self, leases: tuple[str, ...]) -> None:
        if leases:
            self._start(self._release(leases))

    def _start_end(self, session_id: str) -> None:
        self._start(self._end(session_id))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask(self, lookup: Lookup, session_id: str, prefix: Prefix, computed_tokens: int, parent: str) -> None:
        traceparent.set(parent)  # of this task, and gone with it
        matched_tokens, leases = 0, tuple[Lease, ...]()
        try:
            async with self._turns:
                answers = await asyncio.gather(
                    *(self._ask_one(lookup, each, session_id, prefix, computed_tokens) for each in self._instance_ids)
                )
            found = [answer for answer in answers if answer is not None]
            leases = tuple(answer.lease for answer in found if answer.HasField("lease"))
            if len(found) == len(self._instance_ids):
                matched_tokens = min(answer.matched_tokens for answer in found)
        finally:
            if len(leases) < len(self._instance_ids):  # a replica has less than all others
                self._start_release(tuple(lease.lease_id for lease in leases))
                leases = ()
            lookup.leases = tuple(lease.lease_id for lease in leases)
            left_seconds = [lease.expire_time.ToDatetime(UTC).timestamp() - time.time() for lease in leases]
            lookup.lease_until = time.monotonic() + min(left_seconds, default=math.inf) / 2
            lookup.matched_tokens = matched_tokens
            if lookup.given_up:
                self._start_release(lookup.leases)

    async def _ask_one(
        self, lookup: Lookup, instance_id: str, session_id: str, prefix: Prefix, computed_tokens: int
    ) -> LookupResponse | None:
        left_seconds = lookup.deadline - time.monotonic()  # it may have waited for its turn
        if lookup.given_up or left_seconds <= 0:
            return None
        try:
            answer = await self._client.lookup(
                instance_id,
                session_id,
                prefix,
                computed_tokens=computed_tokens,
                timeout_seconds=left_seconds,
            )
        except DepotError as error:
            if not self.paused:
                self._paused_until = time.monotonic() + self._pause_seconds
                self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
                logger.warning("a lookup failed, the next one is made later: %s", error)
            return None
        self._pause_seconds = FIRST_PAUSE_SECONDS
        return answer

    async def _release(self, leases: tuple[str, ...]) -> None:
        for lease in leases:
            await self._tell(self._client.release_lease(lease, timeout_seconds=TELL_SECONDS))

    async def _end(self, session_id: str) -> None:
        try:
            if asking := self._asking.get(session_id):
                await asyncio.wait(asking)
            for instance_id in self._instance_ids:
                await self._tell(self._client.end_session(instance_id, session_id, timeout_seconds=TELL_SECONDS))
        finally:
            self._session_ids.close(session_id)

    async def _tell(self, call: Awaitable[object]) -> None:
        """Makes a call that nothing depends on: leases and sessions end by themselves, too."""
        try:
            async with self._turns:
                await call
        except DepotError as error:
            logger.debug("the depot was not told: %s", error)
