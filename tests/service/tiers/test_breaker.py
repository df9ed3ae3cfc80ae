"""The breaker of a tier."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.tiers.breaker import MAX_PROBE_SECONDS, Breaker
from tests.fakes.clock import Clock


def broken(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(3):
        breaker.note_failure("no answer")
    return breaker


def test_three_failures_within_ten_seconds_open_it() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.note_failure("a")
    clock.advance(5)
    breaker.note_failure("b")
    clock.advance(5)
    assert not breaker.is_open
    breaker.note_failure("c")
    assert (breaker.is_open, breaker.detail, breaker.seconds_to_probe) == (True, "c", 1.0)


def test_failures_that_are_further_apart_do_not_open_it() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(20):
        breaker.note_failure("now and then")
        clock.advance(5.1)
    assert not breaker.is_open


def test_two_kills_open_it_and_one_does_not() -> None:
    breaker = Breaker(Clock())
    breaker.note_kill("hangs")
    assert not breaker.is_open
    breaker.note_kill("hangs")
    assert breaker.is_open


def test_probes_that_fail_come_after_1_2_4_and_at_most_60_seconds() -> None:
    clock = Clock()
    breaker = broken(clock)
    waits = []
    for _ in range(9):
        wait = breaker.seconds_to_probe
        assert wait is not None
        waits.append(wait)
        clock.advance(wait)
        assert breaker.seconds_to_probe == 0
        breaker.note_probe("still no answer")
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_probe_that_works_closes_it_and_changes_are_reported() -> None:
    changes: list[bool] = []
    breaker = Breaker(Clock(), lambda: changes.append(breaker.is_open))
    for _ in range(3):
        breaker.note_failure("no answer")
    breaker.note_probe("no")
    breaker.note_probe("")
    assert changes == [True, False]
    assert (breaker.detail, breaker.seconds_to_probe) == ("", None)


def test_a_tier_that_fails_again_soon_is_not_tried_as_soon_as_before() -> None:
    clock = Clock()
    clock.advance(1_000)
    breaker = broken(clock)
    for _ in range(3):
        breaker.note_probe("no answer")
    breaker.note_probe("")
    clock.advance(30)
    for _ in range(3):
        breaker.note_failure("no answer")
    assert breaker.seconds_to_probe == 8
    breaker.note_probe("")
    clock.advance(61)
    for _ in range(3):
        breaker.note_failure("no answer")
    assert breaker.seconds_to_probe == 1


class BreakerMachine(RuleBasedStateMachine):
    """All that may happen to a breaker, beside a list of what has happened."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(self.clock)
        self.failures: list[float] = []
        self.kills: list[float] = []
        self.is_open = False

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(is_kill=st.booleans())
    def something_fails(self, is_kill: bool) -> None:
        (self.breaker.note_kill if is_kill else self.breaker.note_failure)("no")
        if self.is_open:
            return
        times, limit = (self.kills, 2) if is_kill else (self.failures, 3)
        times.append(self.clock())
        if len([time for time in times if self.clock() - time <= 10.0]) >= limit:
            self.is_open = True
            self.failures.clear()
            self.kills.clear()

    @precondition(lambda self: self.is_open)
    @rule(works=st.booleans())
    def probe_ends(self, works: bool) -> None:
        self.breaker.note_probe("" if works else "no")
        self.is_open = not works

    @invariant()
    def it_is_as_expected(self) -> None:
        self.breaker.check()
        assert self.breaker.is_open == self.is_open
        wait = self.breaker.seconds_to_probe
        assert (wait is None) == (not self.is_open)
        assert wait is None or 0 <= wait <= MAX_PROBE_SECONDS


TestBreakerMachine = BreakerMachine.TestCase
