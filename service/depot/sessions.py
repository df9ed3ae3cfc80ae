"""Sessions: what each request of an engine does. A session is remembered for a while after its end."""

from __future__ import annotations

import itertools
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from kernels.transfer import Transfer
from service.depot.begin_order import BeginOrder
from service.depot.operation import Operation
from service.depot.session_totals import SessionTotals
from service.errors import SessionNotFound, TooManySessions
from telemetry.kinds import SessionEnd

MAX_OPERATIONS = 1_000
MAX_ENDED_REMEMBERED = 1_000
MAX_LIVE = 100_000
MAX_REPORTED = 16_384
MAX_IDLE_AT_A_TIME = 256  # to end so many takes about two milliseconds

SessionIds = tuple[str, str]
"""`(instance_id, session_id)`"""


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """The life of one request. It is not idle while `num_running` operations run.

    `number` grows from each session of the depot to the next. `start`, `last_use` and `last_report` are monotonic
    seconds. `last_use` is when an operation began or ended, or a lease ended. For a session that is known from reports
    of blocks alone, it is when the last report came. `request` is the number of the request that it is about now, 0
    before the first: a session of several turns has several. `has_moved` says that bytes of this request were moved.
    `asked_tokens` and `hit_tokens` are what its longest lookup asked for, and what its best one hit.
    `will_continue` is what the engine said last: the prompt is likely to come again soon, with more tokens.
    """

    number: int
    instance_id: str
    session_id: str
    model_name: str
    start_time: float = field(default_factory=time.time)
    start: float = field(default_factory=time.monotonic)
    last_use: float = field(default_factory=time.monotonic)
    last_report: float = float("-inf")
    end: SessionEnd | None = None
    duration_seconds: float = 0.0
    operations: list[Operation] = field(default_factory=list)
    num_dropped_operations: int = 0
    totals: SessionTotals = field(default_factory=SessionTotals)
    num_running: int = 0
    request: int = 0
    has_moved: bool = False
    asked_tokens: int = 0
    hit_tokens: int = 0
    will_continue: bool = False
    lease_ids: set[str] = field(default_factory=set)
    transfers: set[Transfer] = field(default_factory=set)

    def request_of_lookup(self, new_request: Callable[[], int]) -> int:
        """Return the number of the request that a lookup belongs to: another one after a transfer."""
        if self.request == 0 or self.has_moved:
            self.request, self.has_moved = new_request(), False
            self.asked_tokens = self.hit_tokens = 0
        return self.request

    def note_lookup(self, asked_tokens: int, hit_tokens: int) -> tuple[int, int]:
        """Note what a lookup asked for and hit. Return how much more that is than by earlier ones of the request."""
        before = self.asked_tokens, self.hit_tokens
        self.asked_tokens = max(self.asked_tokens, asked_tokens)
        self.hit_tokens = max(self.hit_tokens, hit_tokens)
        return self.asked_tokens - before[0], self.hit_tokens - before[1]

    def request_of_transfer(self, new_request: Callable[[], int]) -> int:
        """Return the number of the request that a transfer belongs to."""
        if self.request == 0:
            self.request = new_request()
        self.has_moved = True
        return self.request

    def note_will_continue(self, will_continue: bool | None) -> None:
        """Remember whether the engine says that the prompt comes again. None: it says nothing."""
        if will_continue is not None:
            self.will_continue = will_continue

    @property
    def ids(self) -> SessionIds:
        """The key of the session."""
        return self.instance_id, self.session_id

    @property
    def is_busy(self) -> bool:
        """Whether the session runs an operation or holds a lease. A busy session never ends for a new one."""
        return self.num_running > 0 or bool(self.lease_ids)

    def age_seconds(self) -> float:
        """Return the seconds from the start to the end, or until this moment."""
        return self.duration_seconds if self.end is not None else time.monotonic() - self.start

    def begin(self, operation: Operation) -> None:
        """Note that an operation began."""
        self.num_running += 1
        if len(self.operations) < MAX_OPERATIONS:
            self.operations.append(operation)
        else:
            self.num_dropped_operations += 1

    def finish(self, operation: Operation) -> None:
        """Note that an operation ended; it has its outcome and its counts."""
        self.num_running -= 1
        self.totals.add(operation)


class Sessions:
    """Live sessions, and the last ones that ended.

    Each live one is in one of three orders, least recently used first: *busy* (it runs an operation or holds a lease),
    *quiet* (it used the cache before), or *reported* (known from reports of blocks alone). At most `MAX_LIVE` are busy
    or quiet: the oldest quiet one ends for a new one. At most `MAX_REPORTED` are reported, and end for each other only:
    so reports never end a session that uses the cache.
    """

    def __init__(self, idle_timeout_seconds: float) -> None:
        self._idle_timeout_seconds = idle_timeout_seconds
        self._numbers = itertools.count(1)
        self._live: dict[SessionIds, Session] = {}
        self._busy: OrderedDict[SessionIds, Session] = OrderedDict()
        self._quiet: OrderedDict[SessionIds, Session] = OrderedDict()
        self._reported: OrderedDict[SessionIds, Session] = OrderedDict()
        self._orders = (self._busy, self._quiet, self._reported)
        self._num_live: Counter[str] = Counter()  # by instance
        self._ended: deque[Session] = deque()
        self._last_ended: dict[SessionIds, Session] = {}
        # Both have every session that is live or remembered.
        self._all: BeginOrder[Session] = BeginOrder()
        self._of_instance: dict[str, BeginOrder[Session]] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __repr__(self) -> str:
        return (
            f"<Sessions {len(self._busy)} busy, {len(self._quiet)} quiet, {len(self._reported)} reported, "
            f"{len(self._ended)} ended>"
        )

    def find(self, instance_id: str, session_id: str) -> Session | None:
        """Return the live session."""
        return self._live.get((instance_id, session_id))

    def begin(self, instance_id: str, session_id: str, model_name: str) -> Session:
        """Begin a session that uses the cache. No live session has this id, and `victim_for` has ended."""
        session = self._begin(instance_id, session_id, model_name)
        self.used(session)
        return session

    def begin_reported(self, instance_id: str, session_id: str, model_name: str) -> Session:
        """Begin a session that is known from a report. No live session has this id; `victim_for_report` has ended."""
        session = self._begin(instance_id, session_id, model_name)
        self.reported(session)
        return session

    def require(self, instance_id: str, session_id: str) -> Session:
        """Return the live session.

        Raises: SessionNotFound.
        """
        session = self.find(instance_id, session_id)
        if session is None:
            raise SessionNotFound(instance_id, session_id)
        return session

    def latest(self, instance_id: str, session_id: str) -> Session:
        """Return the live session, or the last one of this id that ended.

        Raises: SessionNotFound.
        """
        session = self.find(instance_id, session_id) or self.last_ended(instance_id, session_id)
        if session is None:
            raise SessionNotFound(instance_id, session_id)
        return session

    def last_ended(self, instance_id: str, session_id: str) -> Session | None:
        """Return the last session of this id that ended, if it is remembered."""
        return self._last_ended.get((instance_id, session_id))

    def newest_first(self, instance_id: str = "", before: int | None = None) -> Iterator[Session]:
        """Yield the live and ended sessions of an instance ("": of all) with smaller numbers than `before`."""
        if not instance_id:
            return self._all.newest_first(before)
        sessions = self._of_instance.get(instance_id)
        return sessions.newest_first(before) if sessions is not None else iter(())

    def used(self, session: Session) -> None:
        """Note that an operation of the session began or ended, or that its lease ended."""
        if session.end is None:
            self._move(session, self._busy if session.is_busy else self._quiet)

    def reported(self, session: Session) -> None:
        """Note a report of blocks. The session counts as used only if it is known from reports alone."""
        session.last_report = time.monotonic()
        if session.ids not in self._busy and session.ids not in self._quiet:
            self._move(session, self._reported)

    def is_reported(self, session: Session, now: float) -> bool:
        """Return whether a report of blocks came within the idle timeout before `now` (monotonic)."""
        return session.last_report + self._idle_timeout_seconds > now

    def leave_to_reports(self, session: Session) -> None:
        """Keep a session for its reports alone; it is not busy."""
        self._move(session, self._reported)

    def victim_for(self, session: Session | None) -> Session | None:
        """Return the session that must end before this one (None: a new one) uses the cache; None if none must.

        If all are busy, none can end.

        Raises: TooManySessions.
        """
        is_counted = session is not None and session.ids not in self._reported
        if is_counted or len(self._busy) + len(self._quiet) < MAX_LIVE:
            return None
        oldest = next(iter(self._quiet.values()), None)
        if oldest is None:
            raise TooManySessions(f"{MAX_LIVE} sessions hold leases or run operations")
        return oldest

    def victim_for_report(self) -> Session | None:
        """Return the session that must end before a report begins another; None if none must."""
        return next(iter(self._reported.values())) if len(self._reported) >= MAX_REPORTED else None

    def end(self, session: Session, why: SessionEnd) -> None:
        """End a live session. It is remembered until `MAX_ENDED_REMEMBERED` others have ended."""
        del self._live[session.ids]
        for order in self._orders:
            order.pop(session.ids, None)
        self._num_live[session.instance_id] -= 1
        if not self._num_live[session.instance_id]:
            del self._num_live[session.instance_id]
        session.end = why
        session.duration_seconds = time.monotonic() - session.start
        self._ended.append(session)
        self._last_ended[session.ids] = session
        if len(self._ended) > MAX_ENDED_REMEMBERED:
            self._forget(self._ended.popleft())

    def of_instance(self, instance_id: str) -> list[Session]:
        """Return the live sessions of an instance, newest first."""
        return [session for session in self.newest_first(instance_id) if session.end is None]

    def num_of_instance(self, instance_id: str) -> int:
        """Return how many live sessions an instance has."""
        return self._num_live[instance_id]

    def idle(self, now: float) -> list[Session]:
        """Return up to `MAX_IDLE_AT_A_TIME` sessions that were idle for the whole timeout at `now` (monotonic)."""
        idle: list[Session] = []
        for order in self._orders:
            for session in order.values():
                if len(idle) >= MAX_IDLE_AT_A_TIME or self.idle_at(session) > now:
                    break
                if session.num_running == 0:
                    idle.append(session)
        return idle

    def next_idle(self) -> float | None:
        """Return when the next session will have been idle for too long (monotonic)."""
        oldest = [self.idle_at(session) for order in self._orders for session in islice(order.values(), 1)]
        return min(oldest, default=None)

    def idle_at(self, session: Session) -> float:
        """Return when the session will have been idle for too long, unless it is used (monotonic)."""
        return session.last_use + self._idle_timeout_seconds

    def _begin(self, instance_id: str, session_id: str, model_name: str) -> Session:
        number = next(self._numbers)
        session = Session(number=number, instance_id=instance_id, session_id=session_id, model_name=model_name)
        self._live[session.ids] = session
        self._num_live[instance_id] += 1
        self._all.add(number, session)
        self._of_instance.setdefault(instance_id, BeginOrder()).add(number, session)
        return session

    def _move(self, session: Session, into: OrderedDict[SessionIds, Session]) -> None:
        for order in self._orders:
            order.pop(session.ids, None)
        into[session.ids] = session
        session.last_use = time.monotonic()

    def _forget(self, session: Session) -> None:
        if self._last_ended[session.ids] is session:
            del self._last_ended[session.ids]
        self._all.remove(session.number)
        of_instance = self._of_instance[session.instance_id]
        of_instance.remove(session.number)
        if not of_instance:
            del self._of_instance[session.instance_id]
