"""A block's lifecycle: each row of the table in telemetry/l0/README.md, and sequences that are easy to miscount."""

from __future__ import annotations

import pytest

from telemetry.l0.subscriber import L0Subscriber
from tests.telemetry.l0.l0_model import detached, record, report, session_ended

BLOCK_SIZE = 16
TIMEOUT_SECONDS = 600.0


class Depot:
    """An L0 subscriber that samples every block, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.subscriber = L0Subscriber(sample_rate=1.0, session_idle_timeout_seconds=TIMEOUT_SECONDS)

    def after(self, seconds: float) -> Depot:
        self.now += seconds
        return self

    def gives(self, session_id, block_ids, token_ids, *, reused=(), resumed=False, instance_id="a", model_name="m"):
        entry = record(session_id, block_ids, token_ids, reused, resumed)
        self.take(report(self.now, instance_id, entry, block_size=BLOCK_SIZE, model_name=model_name))

    def ends(self, session_id, instance_id="a"):
        self.take(session_ended(self.now, instance_id, session_id))

    def loses(self, instance_id, num_ranks_left=0):
        self.take(detached(self.now, instance_id, num_ranks_left))

    def take(self, event):
        self.subscriber.handle([event])

    def counts(self, instance_id="a"):
        return self.subscriber.counts()[instance_id]

    def seen(self, name: str, instance_id: str = "a", model_name: str = "m") -> tuple[int, float]:
        """Return the number of observations and their sum, in seconds."""
        (histogram,) = [h for h in self.subscriber.histograms if h.metric.name == f"kvdepot.l0.block.{name}"]
        points = {point.attributes: point for point in histogram.points()}
        point = points.get((instance_id, model_name))
        return (point.count, point.sum) if point else (0, 0.0)

    def saw_no(self, *names: str) -> bool:
        return all(self.seen(name) == (0, 0.0) for name in names)


@pytest.fixture
def depot() -> Depot:
    return Depot()


def text(first: int, num_tokens: int) -> list[int]:
    return list(range(first, first + num_tokens))


def test_a_first_allocation_begins_a_life_and_records_nothing(depot):
    depot.gives("s", [1, 2], text(0, 32))
    assert (depot.counts().allocations, depot.counts().owned, depot.counts().released) == (2, 2, 0)
    assert depot.saw_no("lifetime", "idle_before_evict", "reuse_gap")


def test_the_same_session_again_is_nothing(depot):
    depot.gives("s", [1], text(0, 16))
    before = depot.counts()
    depot.after(5).gives("s", [], text(16, 16), reused=[1])
    depot.after(5).gives("s", [], [], reused=[1])
    assert (depot.counts().shares, depot.counts().reuses) == (before.shares, before.reuses)
    assert depot.counts().owned == 1


def test_the_same_contents_for_another_session_while_owned_are_shared_not_reused(depot):
    depot.gives("s", [1], text(0, 16))
    depot.after(5).gives("t", [1], text(0, 16))
    assert (depot.counts().shares, depot.counts().reuses, depot.counts().evictions) == (1, 0, 0)
    depot.after(5).ends("s")
    assert depot.counts().owned == 1
    depot.after(5).ends("t")
    assert (depot.counts().owned, depot.counts().released) == (0, 1)
    assert depot.saw_no("reuse_gap")


def test_the_same_contents_once_released_are_a_reuse_recorded_at_once(depot):
    depot.gives("s", [1], text(0, 16))
    depot.after(5).ends("s")
    depot.after(2).gives("t", [1], text(0, 16))
    assert depot.seen("reuse_gap") == (1, 7.0)
    assert (depot.counts().reuses, depot.counts().owned, depot.counts().allocations) == (1, 1, 1)


def test_a_reuse_gap_begins_at_the_last_access_by_any_session(depot):
    depot.gives("s", [1], text(0, 16))
    depot.after(5).gives("t", [1], text(0, 16))
    depot.after(1).ends("s")
    depot.ends("t")
    depot.after(2).gives("u", [1], text(0, 16))
    assert depot.seen("reuse_gap") == (1, 3.0)


def test_a_block_listed_as_reused_is_reused_if_it_was_released_and_shared_if_owned(depot):
    depot.gives("s", [1], text(0, 16))
    depot.after(1).ends("s")
    depot.after(1).gives("t", [2], text(0, 20), reused=[1])
    assert (depot.counts().reuses, depot.counts().shares) == (1, 0)
    depot.after(1).gives("u", [3], text(0, 20), reused=[1])
    assert (depot.counts().reuses, depot.counts().shares) == (1, 1)
    assert depot.seen("reuse_gap") == (1, 2.0)


def test_a_block_listed_as_reused_counts_before_its_tokens_are_reported(depot):
    depot.gives("s", [1], text(0, 16))
    depot.ends("s")
    depot.after(3).gives("t", [], [], reused=[1])
    assert depot.seen("reuse_gap") == (1, 3.0)
    depot.after(1).gives("t", [], text(0, 16))
    assert (depot.counts().reuses, depot.counts().evictions) == (1, 0)


def test_a_reused_block_that_was_never_seen_begins_a_life_and_holds_what_its_tokens_say(depot):
    depot.gives("s", [], text(0, 16), reused=[1])
    assert (depot.counts().allocations, depot.counts().reuses) == (1, 0)
    depot.after(1).ends("s")
    assert depot.counts().released == 1
    depot.after(1).gives("t", [1], text(0, 16))
    assert depot.seen("reuse_gap") == (1, 2.0)


def test_two_sessions_that_fill_one_reused_block_at_once_own_it_once_each(depot):
    depot.gives("s", [], [], reused=[1])
    depot.gives("t", [], [], reused=[1])
    records = [record(session_id, [], text(0, 16)) for session_id in "st"]
    depot.take(report(depot.now, "a", *records, block_size=BLOCK_SIZE))
    assert depot.counts().shares == 1
    depot.ends("s")
    depot.ends("t")
    assert (depot.counts().owned, depot.counts().released) == (0, 1)


def test_other_contents_are_an_eviction_with_lifetime_and_idle_time(depot):
    depot.gives("s", [1], text(0, 16))
    depot.after(4).ends("s")
    depot.after(3).gives("t", [1], text(500, 16))
    assert depot.seen("lifetime") == (1, 7.0)
    assert depot.seen("idle_before_evict") == (1, 3.0)
    depot.after(2).ends("t")
    depot.after(1).gives("u", [1], text(900, 16))
    assert depot.seen("lifetime") == (2, 10.0)
    assert depot.counts().evictions == 2


def test_a_block_evicted_while_it_was_owned_was_not_idle_and_its_old_owner_owns_it_no_more(depot):
    depot.gives("s", [1], text(0, 16))
    depot.after(4).gives("t", [1], text(500, 16))
    assert depot.seen("idle_before_evict") == (1, 0.0)
    depot.after(1).ends("s")
    assert depot.counts().owned == 1
    depot.after(1).ends("t")
    depot.after(2).gives("u", [1], text(900, 16))
    assert depot.seen("idle_before_evict") == (2, 2.0)


def test_a_block_that_is_written_loses_its_content_at_once(depot):
    depot.gives("s", [1], text(0, 16))
    depot.ends("s")
    depot.after(3).gives("t", [1], text(500, 4))
    assert (depot.seen("lifetime"), depot.seen("idle_before_evict")) == ((1, 3.0), (1, 3.0))
    depot.after(5).gives("t", [], text(504, 12))
    assert depot.counts().evictions == 1


def test_a_block_reallocated_without_ever_having_been_full_records_nothing(depot):
    depot.gives("s", [1], text(0, 4))
    depot.after(1).ends("s")
    assert (depot.counts().unknown, depot.counts().released) == (1, 0)
    depot.after(1).gives("t", [1], text(0, 16))
    assert (depot.counts().allocations, depot.counts().evictions, depot.counts().unknown) == (2, 0, 0)
    assert depot.saw_no("lifetime", "idle_before_evict", "reuse_gap")


def test_an_instance_that_goes_is_forgotten_with_nothing_recorded_but_its_counters_stay(depot):
    depot.gives("s", [1], text(0, 16))
    depot.loses("a", num_ranks_left=1)
    assert depot.counts().owned == 1
    depot.loses("a")
    assert (depot.counts().allocations, depot.counts().owned) == (1, 0)
    depot.after(1).gives("t", [1], text(500, 16))
    assert depot.saw_no("lifetime", "idle_before_evict", "reuse_gap")
    assert (depot.counts().allocations, depot.counts().evictions) == (2, 0)


def test_an_instance_that_comes_back_with_another_model_is_another(depot):
    depot.gives("s", [1], text(0, 16))
    depot.after(1).gives("t", [1], text(500, 16), model_name="n")
    assert (depot.counts().model_name, depot.counts().allocations, depot.counts().evictions) == ("n", 1, 0)


def test_a_decode_block_becomes_full_over_several_records(depot):
    depot.gives("s", [1, 2], text(0, 20))
    for i in range(20, 32):
        depot.after(0.1).gives("s", [], [i])
    depot.ends("s")
    assert (depot.counts().released, depot.counts().unknown) == (2, 0)
    depot.gives("t", [1, 2], text(0, 32))
    assert (depot.counts().reuses, depot.counts().evictions) == (2, 0)


def test_the_same_prefix_in_a_longer_prompt_on_the_same_blocks_is_a_reuse(depot):
    depot.gives("s", [1, 2], text(0, 32))
    depot.ends("s")
    depot.after(1).gives("t", [1, 2, 3, 4], text(0, 60))
    assert (depot.counts().reuses, depot.counts().evictions) == (2, 0)


def test_equal_tokens_after_a_different_prefix_are_other_contents(depot):
    depot.gives("s", [1, 2], text(0, 16) + text(100, 16))
    depot.ends("s")
    depot.after(1).gives("t", [3, 2], text(50, 16) + text(100, 16))
    assert (depot.counts().reuses, depot.counts().evictions) == (0, 1)


@pytest.mark.parametrize("token", [0, 2**32 - 1])
def test_the_same_token_over_and_over_is_other_contents_at_another_place(depot, token):
    depot.gives("s", [1, 2], [token] * 32)
    depot.ends("s")
    depot.gives("t", [2, 1], [token] * 32)
    assert (depot.counts().reuses, depot.counts().evictions) == (0, 2)


def test_a_block_reused_once_and_never_evicted_has_its_gap_recorded(depot):
    depot.gives("s", [1], text(0, 16))
    depot.ends("s")
    depot.after(9).gives("t", [1], text(0, 16))
    depot.after(1_000).ends("t")
    assert depot.seen("reuse_gap") == (1, 9.0)
    assert depot.saw_no("lifetime", "idle_before_evict")


def test_time_in_use_is_not_idle_time(depot):
    depot.gives("s", [1], text(0, 16))
    for _ in range(10):
        depot.after(100).gives("s", [], [])
    depot.ends("s")
    depot.after(2).gives("t", [1], text(500, 16))
    assert depot.seen("lifetime") == (1, 1_002.0)
    assert depot.seen("idle_before_evict") == (1, 2.0)


def test_two_instances_with_one_session_id_have_nothing_to_do_with_each_other(depot):
    depot.gives("s", [1], text(0, 16), instance_id="a", model_name="m")
    depot.gives("s", [1], text(500, 16), instance_id="b", model_name="n")
    depot.ends("s", instance_id="b")
    assert (depot.counts("a").owned, depot.counts("b").owned) == (1, 0)
    depot.after(2).gives("t", [1], text(900, 16), instance_id="b", model_name="n")
    assert depot.seen("lifetime", "b", "n") == (1, 2.0)
    assert depot.seen("lifetime", "a", "m") == (0, 0.0)
    assert (depot.counts("a").evictions, depot.counts("b").evictions) == (0, 1)


def test_a_session_whose_end_never_comes_ends_when_it_was_idle_for_too_long(depot):
    depot.gives("s", [1], text(0, 16))
    depot.after(TIMEOUT_SECONDS - 1).gives("t", [2], text(500, 16))
    assert depot.counts().owned == 2
    depot.after(11).gives("t", [], [])
    assert (depot.counts().owned, depot.counts().released) == (1, 1)
    depot.gives("u", [1], text(900, 16))
    assert depot.seen("idle_before_evict") == (1, 10.0)  # since it was idle for too long, whenever that was noticed


def test_a_quiet_depot_releases_blocks_when_it_is_asked_to(depot):
    depot.gives("s", [1], text(0, 16))
    depot.subscriber.expire(depot.now + TIMEOUT_SECONDS - 1)
    assert depot.counts().owned == 1
    depot.subscriber.expire(depot.now + TIMEOUT_SECONDS)
    assert (depot.counts().owned, depot.counts().released) == (0, 1)


def test_a_session_that_is_preempted_lets_go_and_starts_again_at_its_first_token(depot):
    depot.gives("s", [1, 2], text(0, 32))
    depot.after(4).gives("s", [3], text(0, 48), reused=[1, 2], resumed=True)
    assert depot.counts().reuses == 2
    assert depot.seen("reuse_gap") == (2, 8.0)
    depot.after(1).gives("s", [7, 8], text(0, 32), resumed=True)
    assert (depot.counts().owned, depot.counts().released) == (2, 3)
    depot.after(1).ends("s")
    depot.gives("t", [1, 2, 3], text(0, 48))
    assert (depot.counts().reuses, depot.counts().evictions) == (5, 0)


def test_sessions_of_one_report_are_followed_in_its_order(depot):
    records = [record("s", [1], text(0, 16)), record("t", [1], text(500, 16)), record("u", [1], text(500, 16))]
    depot.take(report(depot.now, "a", *records, block_size=BLOCK_SIZE))
    assert (depot.counts().allocations, depot.counts().evictions, depot.counts().shares) == (2, 1, 1)


def test_a_block_given_twice_to_one_session_is_let_go_of_once(depot):
    depot.gives("s", [1, 1], text(0, 32))
    assert (depot.counts().allocations, depot.counts().evictions, depot.counts().owned) == (2, 1, 1)
    depot.gives("t", [1], text(900, 16))
    depot.ends("s")
    assert depot.counts().owned == 1


def test_a_session_owns_a_block_by_the_entry_that_took_it_last_wherever_that_is_in_its_table(depot):
    depot.gives("s", [1], text(0, 4))
    depot.gives("t", [1], text(500, 16))
    depot.gives("s", [1], [])
    depot.gives("u", [1], text(900, 16))
    depot.gives("s", [], text(4, 12))  # fills its first entry, which it had lost
    assert depot.counts().evictions == 2
    depot.gives("s", [], [], reused=[1])
    assert (depot.counts().shares, depot.counts().owned) == (0, 1)
    depot.ends("s")
    assert depot.counts().owned == 0


def test_blocks_of_any_size_are_followed(depot):
    for size in (1, 3, 256):
        entry = record("s", [1, 2], text(0, 2 * size))
        again = record("t", [1, 2], text(0, 2 * size))
        name = f"size-{size}"
        depot.subscriber.handle(
            [
                report(depot.now, name, entry, block_size=size),
                session_ended(depot.now, name, "s"),
                report(depot.now, name, again, block_size=size),
            ]
        )
        assert (depot.counts(name).allocations, depot.counts(name).reuses) == (2, 2)
