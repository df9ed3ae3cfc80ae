"""After losses, restarts and replays in any order, what a follower applied is what the publisher told."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from examples.router.follower import MAX_HELD_BATCHES, Batch, BeginAnew, Follower, Step


def batch(number: int, life: int = 0) -> Batch:
    return Batch(number, b"topic", f"{life}.{number}".encode())


class Reading(RuleBasedStateMachine):
    """A publisher that loses batches and starts again, and a follower of it."""

    def __init__(self) -> None:
        super().__init__()
        self.follower = Follower()
        self.lives: list[list[Batch]] = [[]]
        self.published: deque[Batch | None] = deque()
        """On the way to the follower. None: the connection ends here."""
        self.answer: deque[Batch | None] | None = None
        """The rest of the replay. None in it: its end."""
        self.applied: list[Batch] = []

    @property
    def life(self) -> list[Batch]:
        return self.lives[-1]

    def take(self, step: Step) -> None:
        if isinstance(step, BeginAnew):
            self.applied.clear()
        else:
            self.applied.append(step)

    @rule(is_lost=st.booleans())
    def publish(self, is_lost: bool) -> None:
        self.life.append(batch(len(self.life), len(self.lives)))
        if not is_lost:
            self.published.append(self.life[-1])

    @rule()
    def start_again(self) -> None:
        self.lives.append([])
        self.published.append(None)
        if self.answer is not None:
            self.answer = deque()  # the rest never comes

    @precondition(lambda self: self.published)
    @rule()
    def hear(self) -> None:
        published = self.published.popleft()
        if published is None:
            self.follower.disconnect()
            self.answer = None
        else:
            for step in self.follower.live(published):
                self.take(step)

    @precondition(lambda self: not self.follower.is_asking)
    @rule()
    def ask(self) -> None:
        start = self.follower.ask()
        is_connected = None not in self.published
        self.answer = deque([*self.life[start:], None] if is_connected else [])

    @precondition(lambda self: self.answer)
    @rule()
    def read_answer(self) -> None:
        assert self.answer
        answered = self.answer.popleft()
        for step in self.follower.end() if answered is None else self.follower.replayed(answered):
            self.take(step)
        if answered is None:
            self.answer = None

    @invariant()
    def nothing_is_applied_twice_or_left_out(self) -> None:
        assert any(self.applied == life[: len(self.applied)] for life in self.lives)

    def teardown(self) -> None:
        """Hear the rest, then ask until nothing is missing: at most twice, as a restart shows in the first answer."""
        while self.published:
            self.hear()
        for _ in range(3):
            if not self.follower.is_asking:
                self.ask()
            while self.answer:
                self.read_answer()
        assert self.applied == self.life
        assert not self.follower.needs_replay


TestReading = Reading.TestCase
TestReading.settings = settings(max_examples=100, stateful_step_count=40)


def applied(follower: Follower, *live: Batch) -> list[Step]:
    return [step for each in live for step in follower.live(each)]


def test_nothing_is_applied_before_the_first_replay() -> None:
    follower = Follower()
    assert applied(follower, batch(0)) == []
    assert follower.needs_replay
    assert follower.ask() == 0


def test_a_publisher_that_forgot_the_first_batches_tells_what_it_has() -> None:
    follower = Follower()
    follower.ask()
    assert list(follower.replayed(batch(7))) == [batch(7)]
    assert list(follower.end()) == []
    assert applied(follower, batch(8)) == [batch(8)]
    assert follower.ask() == 8


def test_a_hole_in_a_replay_begins_anew_behind_it() -> None:
    follower = Follower()
    follower.ask()
    assert list(follower.replayed(batch(0))) == [batch(0)]
    assert list(follower.replayed(batch(2))) == [BeginAnew(), batch(2)]


def test_what_waits_for_a_replay_is_bounded() -> None:
    follower = Follower()
    follower.ask()
    assert applied(follower, *map(batch, range(MAX_HELD_BATCHES + 1))) == []
    assert list(follower.end()) == []  # the first one was dropped: a gap
    assert follower.needs_replay


def test_after_a_disconnection_the_last_batch_is_compared_first() -> None:
    follower = Follower()
    follower.ask()
    assert list(follower.end()) == []
    assert applied(follower, batch(0)) == [batch(0)]
    follower.disconnect()
    assert applied(follower, batch(1, life=1)) == []  # the next number, by chance
    assert follower.ask() == 0
    assert list(follower.replayed(batch(0, life=1))) == []
    assert list(follower.end()) == [BeginAnew()]
    assert follower.ask() == 0
    assert [step for number in (0, 1) for step in follower.replayed(batch(number, life=1))] == [
        batch(0, life=1),
        batch(1, life=1),
    ]
