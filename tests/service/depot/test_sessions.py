"""Sessions: live while they are used, remembered after their end, and bounded in number."""

from __future__ import annotations

import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.depot.operation import Operation
from service.depot.sessions import (
    MAX_ENDED_REMEMBERED,
    MAX_IDLE_AT_A_TIME,
    MAX_LIVE,
    MAX_OPERATIONS,
    MAX_REPORTED,
    Session,
    Sessions,
)
from service.errors import SessionNotFound, TooManySessions
from telemetry.kinds import OperationKind, SessionEnd

IDLE_SECONDS = 600.0


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(IDLE_SECONDS)


def operation() -> Operation:
    return Operation(kind=OperationKind.LOOKUP, operation_id="1")


def test_a_session_is_found_by_both_ids(sessions: Sessions) -> None:
    session = sessions.begin("i", "s", "m")
    other = sessions.begin("j", "s", "m")
    assert sessions.find("i", "s") is session
    assert sessions.require("j", "s") is other
    assert sessions.find("s", "i") is None
    assert sessions.of_instance("i") == [session]
    with pytest.raises(SessionNotFound):
        sessions.require("i", "t")


def test_a_session_that_ended_is_remembered_and_not_live(sessions: Sessions) -> None:
    session = sessions.begin("i", "s", "m")
    sessions.end(session, SessionEnd.REQUESTED)
    assert sessions.latest("i", "s") is session
    assert session.end is SessionEnd.REQUESTED
    assert session.age_seconds() == session.duration_seconds
    assert len(sessions) == 0
    with pytest.raises(SessionNotFound):
        sessions.require("i", "s")


def test_of_sessions_with_one_id_the_latest_is_shown(sessions: Sessions) -> None:
    for _ in range(2):
        sessions.end(sessions.begin("i", "s", "m"), SessionEnd.IDLE)
    second_ended = next(iter(sessions.newest_first()))
    assert sessions.latest("i", "s") is second_ended
    live = sessions.begin("i", "s", "m")
    assert sessions.latest("i", "s") is live


def test_of_two_that_ended_the_one_that_ended_last_is_shown_and_the_other_is_forgotten_alone(
    sessions: Sessions,
) -> None:
    first = sessions.begin("i", "s", "m")
    sessions.end(first, SessionEnd.IDLE)
    for number in range(MAX_ENDED_REMEMBERED - 1):
        sessions.end(sessions.begin("j", str(number), "m"), SessionEnd.REQUESTED)
    second = sessions.begin("i", "s", "m")
    sessions.end(second, SessionEnd.REQUESTED)
    assert sessions.latest("i", "s") is second
    assert list(sessions.newest_first("i")) == [second]


def test_the_oldest_ended_sessions_are_forgotten(sessions: Sessions) -> None:
    for number in range(MAX_ENDED_REMEMBERED + 1):
        sessions.end(sessions.begin("i", str(number), "m"), SessionEnd.REQUESTED)
    with pytest.raises(SessionNotFound):
        sessions.latest("i", "0")
    assert sessions.latest("i", "1").session_id == "1"
    assert len(list(sessions.newest_first())) == MAX_ENDED_REMEMBERED
    sessions.end(sessions.begin("j", "s", "m"), SessionEnd.REQUESTED)
    assert len(list(sessions.newest_first("i"))) == MAX_ENDED_REMEMBERED - 1


def test_instances_without_sessions_take_no_memory(sessions: Sessions) -> None:
    for number in range(MAX_ENDED_REMEMBERED + 10):
        sessions.end(sessions.begin(str(number), "s", "m"), SessionEnd.REQUESTED)
    assert len(sessions._of_instance) == len(sessions._last_ended) == MAX_ENDED_REMEMBERED


def test_operations_beyond_the_limit_are_counted_and_not_kept(sessions: Sessions) -> None:
    session = sessions.begin("i", "s", "m")
    for _ in range(MAX_OPERATIONS + 3):
        session.begin(operation())
    assert len(session.operations) == MAX_OPERATIONS
    assert session.num_dropped_operations == 3
    assert session.num_running == MAX_OPERATIONS + 3


def test_what_does_nothing_is_idle_and_what_was_used_is_not(sessions: Sessions) -> None:
    first, second = sessions.begin("i", "s", "m"), sessions.begin("i", "t", "m")
    sessions.used(first)
    assert sessions.idle(second.last_use + IDLE_SECONDS) == [second]
    assert sessions.next_idle() == second.last_use + IDLE_SECONDS
    assert sessions.idle(first.last_use + IDLE_SECONDS) == [second, first]


def test_a_running_operation_keeps_a_session_from_being_idle(sessions: Sessions) -> None:
    session = sessions.begin("i", "s", "m")
    session.begin(operation())
    assert sessions.idle(time.monotonic() + 2 * IDLE_SECONDS) == []
    session.num_running -= 1
    assert sessions.idle(time.monotonic() + 2 * IDLE_SECONDS) == [session]


def test_of_too_many_sessions_the_least_recently_used_one_that_is_not_busy_ends(sessions: Sessions) -> None:
    for number in range(MAX_LIVE):
        assert sessions.victim_for(None) is None
        sessions.begin("i", str(number), "m")
    running, leasing, used, quiet = (sessions.require("i", str(number)) for number in range(4))
    running.begin(operation())
    leasing.lease_ids.add("lease")
    for session in (running, leasing, used):
        sessions.used(session)
    assert sessions.victim_for(None) is quiet
    assert sessions.victim_for(running) is None
    assert sessions.idle(time.monotonic()) == []


def test_where_all_sessions_are_busy_a_new_one_is_refused_until_one_is_not(sessions: Sessions) -> None:
    for number in range(MAX_LIVE):
        session = sessions.begin("i", str(number), "m")
        session.lease_ids.add("lease")
        sessions.used(session)
    reported = sessions.begin_reported("i", "reported", "m")
    for new in (None, reported):
        with pytest.raises(TooManySessions):
            sessions.victim_for(new)
    session.lease_ids.clear()
    sessions.used(session)
    assert sessions.victim_for(None) is session


def test_reported_sessions_end_for_each_other_alone(sessions: Sessions) -> None:
    sessions.begin("i", "s", "m")
    first, second, *_ = [sessions.begin_reported("i", str(number), "m") for number in range(MAX_REPORTED)]
    assert sessions.victim_for(None) is None
    assert sessions.victim_for_report() is first
    sessions.reported(first)
    assert sessions.victim_for_report() is second
    sessions.used(second)
    assert sessions.victim_for_report() is None


def test_a_report_makes_no_session_that_uses_the_cache_younger(sessions: Sessions) -> None:
    first, second = sessions.begin("i", "s", "m"), sessions.begin("i", "t", "m")
    over_at = sessions.idle_at(second)
    sessions.reported(first)
    assert sessions.idle(over_at) == [first, second]
    assert [sessions.is_reported(session, over_at) for session in (first, second)] == [True, False]
    sessions.leave_to_reports(first)
    assert sessions.idle(over_at) == [second]


def test_not_all_of_many_idle_sessions_are_named_at_once(sessions: Sessions) -> None:
    live = [sessions.begin("i", str(number), "m") for number in range(MAX_IDLE_AT_A_TIME + 1)]
    assert sessions.idle(sessions.idle_at(live[-1])) == live[:-1]


def test_the_use_of_an_ended_session_does_not_revive_it(sessions: Sessions) -> None:
    session = sessions.begin("i", "s", "m")
    sessions.end(session, SessionEnd.INSTANCE_DETACHED)
    sessions.used(session)
    assert sessions.find("i", "s") is None


class AnyUse(RuleBasedStateMachine):
    """Begins, uses, reports, ends and idles at random; the model is two lists: the live, least recently used first, and
    all."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions(IDLE_SECONDS)
        self.live: list[Session] = []
        self.reported: list[Session] = []
        self.all: list[Session] = []

    @rule(instance_id=st.sampled_from("ij"), session_id=st.sampled_from("stuv"))
    def begin(self, instance_id: str, session_id: str) -> None:
        session = self.sessions.find(instance_id, session_id)
        if session is None:
            session = self.sessions.begin(instance_id, session_id, "m")
            self.live.append(session)
            self.all.append(session)

    @rule(instance_id=st.sampled_from("ij"), session_id=st.sampled_from("stuv"))
    def report(self, instance_id: str, session_id: str) -> None:
        session = self.sessions.find(instance_id, session_id)
        if session is None:
            session = self.sessions.begin_reported(instance_id, session_id, "m")
            self.all.append(session)
        else:
            self.sessions.reported(session)
        if session not in self.live:
            self.reported = [*(each for each in self.reported if each is not session), session]

    @precondition(lambda self: self.live or self.reported)
    @rule(data=st.data(), change=st.sampled_from(["begin", "end", "lease", "release", "nothing"]))
    def use(self, data: st.DataObject, change: str) -> None:
        session = data.draw(st.sampled_from(self.live + self.reported))
        match change:
            case "begin":
                session.begin(operation())
            case "end" if session.num_running:
                session.num_running -= 1
            case "lease":
                session.lease_ids.add("lease")
            case "release":
                session.lease_ids.clear()
        self.sessions.used(session)
        self.forget(session)
        self.live.append(session)

    @precondition(lambda self: self.live or self.reported)
    @rule(data=st.data(), why=st.sampled_from(SessionEnd))
    def end(self, data: st.DataObject, why: SessionEnd) -> None:
        session = data.draw(st.sampled_from(self.live + self.reported))
        self.sessions.end(session, why)
        self.forget(session)

    @precondition(lambda self: self.live or self.reported)
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        now = data.draw(st.sampled_from(self.live + self.reported)).last_use + IDLE_SECONDS
        over = self.sessions.idle(now)
        expected = [s for s in self.live + self.reported if s.last_use + IDLE_SECONDS <= now and s.num_running == 0]
        assert sorted(over, key=id) == sorted(expected, key=id)
        for session in over:
            self.sessions.end(session, SessionEnd.IDLE)
            self.forget(session)

    def forget(self, session: Session) -> None:
        self.live = [each for each in self.live if each is not session]
        self.reported = [each for each in self.reported if each is not session]

    @invariant()
    def each_session_has_one_place(self) -> None:
        assert list(self.sessions.newest_first()) == [*reversed(self.all)]
        live = {*self.live, *self.reported}
        for instance_id in "ij":
            of_instance = [session for session in reversed(self.all) if session.instance_id == instance_id]
            assert list(self.sessions.newest_first(instance_id)) == of_instance
            assert self.sessions.of_instance(instance_id) == [s for s in of_instance if s in live]
        assert len(self.sessions) == len(live)
        assert self.sessions.next_idle() == min((s.last_use + IDLE_SECONDS for s in live), default=None)
        assert [s.last_use for s in self.live] == sorted(s.last_use for s in self.live)
        quiet = [session for session in self.live if not session.is_busy]
        assert list(self.sessions._quiet.values()) == quiet


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=50, stateful_step_count=50)
