"""Sessions: what each request of an engine did, while it lives and for a while after."""

from __future__ import annotations

import itertools
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from service.begin_order import BeginOrder
from service.errors import SessionNotFound
from service.transfers import RunningTransfer

MAX_OPERATIONS = 1_000
MAX_ENDED_REMEMBERED = 1_000
MAX_LIVE = 100_000
ENDS_AT_ONCE = 256


class OperationKind(StrEnum):
    """What an operation was."""

    LOOKUP = "lookup"
    STORE = "store"
    RETRIEVE = "retrieve"


class Outcome(StrEnum):
    """How an operation ended."""

    OK = "ok"
    PARTIAL = "partial"
    MISS = "miss"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"


class SessionEnd(StrEnum):
    """Why a session ended."""

    REQUESTED = "requested"
    IDLE = "idle"
    INSTANCE_DETACHED = "instance detached"


@dataclass(slots=True, kw_only=True, eq=False)
class Operation:
    """One call of a session; filled in as it goes on, with the outcome at its end. Times are monotonic seconds.

    `asked_tokens` are those that a lookup was for, `num_tokens` those that matched, were stored or were retrieved.
    """

    kind: OperationKind
    operation_id: str
    rank: int = 0
    start: float = field(default_factory=time.monotonic)
    duration_seconds: float = 0.0
    asked_tokens: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    outcome: Outcome | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """The life of one request. `num_running` operations keep it from being idle.

    `number` is greater than that of every session of this depot that began before.
    """

    number: int
    instance_id: str
    session_id: str
    model_name: str
    start_time: float = field(default_factory=time.time)
    start: float = field(default_factory=time.monotonic)
    last_use: float = field(default_factory=time.monotonic)
    end: SessionEnd | None = None
    duration_seconds: float = 0.0
    operations: list[Operation] = field(default_factory=list)
    num_dropped_operations: int = 0
    num_running: int = 0
    lease_ids: set[str] = field(default_factory=set)
    transfers: set[RunningTransfer] = field(default_factory=set)

    def age_seconds(self) -> float:
        """How long it lived, or has lived so far."""
        return self.duration_seconds if self.end is not None else time.monotonic() - self.start

    def begin(self, operation: Operation) -> None:
        """Note that an operation began."""
        self.num_running += 1
        if len(self.operations) < MAX_OPERATIONS:
            self.operations.append(operation)
        else:
            self.num_dropped_operations += 1


class Sessions:
    """Live sessions, least recently used first, and the last ones that ended."""

    def __init__(self, idle_timeout_seconds: float) -> None:
        self._idle_timeout_seconds = idle_timeout_seconds
        self._numbers = itertools.count(1)
        self._live: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._num_live: Counter[str] = Counter()
        self._ended: deque[Session] = deque()
        self._last_ended: dict[tuple[str, str], Session] = {}
        # Both hold every session that is live or remembered.
        self._all: BeginOrder[Session] = BeginOrder()
        self._of_instance: dict[str, BeginOrder[Session]] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __repr__(self) -> str:
        return f"<Sessions {len(self._live)} live, {len(self._ended)} ended>"

    def find(self, instance_id: str, session_id: str) -> Session | None:
        """The live session."""
        return self._live.get((instance_id, session_id))

    def begin(self, instance_id: str, session_id: str, model_name: str) -> Session:
        """Make a session live; there must be none of this id."""
        number = next(self._numbers)
        session = Session(number=number, instance_id=instance_id, session_id=session_id, model_name=model_name)
        self._live[instance_id, session_id] = session
        self._num_live[instance_id] += 1
        self._all.add(number, session)
        self._of_instance.setdefault(instance_id, BeginOrder()).add(number, session)
        return session

    def require(self, instance_id: str, session_id: str) -> Session:
        """The live session. Raises: SessionNotFound."""
        session = self.find(instance_id, session_id)
        if session is None:
            raise SessionNotFound(instance_id, session_id)
        return session

    def latest(self, instance_id: str, session_id: str) -> Session:
        """The live session, or the last one of this id that ended. Raises: SessionNotFound."""
        session = self.find(instance_id, session_id) or self.last_ended(instance_id, session_id)
        if session is None:
            raise SessionNotFound(instance_id, session_id)
        return session

    def last_ended(self, instance_id: str, session_id: str) -> Session | None:
        """Of the ended sessions of this id that are remembered, the last one."""
        return self._last_ended.get((instance_id, session_id))

    def newest_first(self, instance_id: str = "", before: int | None = None) -> Iterator[Session]:
        """Live and ended sessions of an instance ("": of all), the last that began first; from a number down."""
        if not instance_id:
            return self._all.newest_first(before)
        sessions = self._of_instance.get(instance_id)
        return sessions.newest_first(before) if sessions is not None else iter(())

    def used(self, session: Session) -> None:
        """Note that a session did something."""
        if session.end is None:
            session.last_use = time.monotonic()
            self._live.move_to_end((session.instance_id, session.session_id))

    def end(self, session: Session, why: SessionEnd) -> None:
        """End a live session; it is remembered until enough others have ended after it."""
        ids = (session.instance_id, session.session_id)
        del self._live[ids]
        self._num_live[session.instance_id] -= 1
        if not self._num_live[session.instance_id]:
            del self._num_live[session.instance_id]
        session.end = why
        session.duration_seconds = time.monotonic() - session.start
        self._ended.append(session)
        self._last_ended[ids] = session
        if len(self._ended) > MAX_ENDED_REMEMBERED:
            self._forget(self._ended.popleft())

    def of_instance(self, instance_id: str) -> list[Session]:
        """The live sessions of an instance, the last that began first."""
        return [session for session in self.newest_first(instance_id) if session.end is None]

    def num_of_instance(self, instance_id: str) -> int:
        """How many live sessions an instance has."""
        return self._num_live[instance_id]

    def idle(self, now: float) -> list[Session]:
        """Sessions that did nothing for the idle timeout, and the most idle ones of too many: the first of them."""
        over: list[Session] = []
        num_too_many = len(self._live) - MAX_LIVE
        for session in self._live.values():
            is_idle = self.idle_at(session) <= now
            if len(over) == ENDS_AT_ONCE or (not is_idle and len(over) >= num_too_many):
                break
            if session.num_running == 0:
                over.append(session)
        return over

    def next_idle(self) -> float | None:
        """When the least recently used session will have been idle for too long (monotonic)."""
        session = next(iter(self._live.values()), None)
        return self.idle_at(session) if session is not None else None

    def idle_at(self, session: Session) -> float:
        """When the session will have been idle for too long, unless it is used (monotonic)."""
        return session.last_use + self._idle_timeout_seconds

    def _forget(self, session: Session) -> None:
        ids = (session.instance_id, session.session_id)
        if self._last_ended[ids] is session:
            del self._last_ended[ids]
        self._all.remove(session.number)
        of_instance = self._of_instance[session.instance_id]
        of_instance.remove(session.number)
        if not of_instance:
            del self._of_instance[session.instance_id]
