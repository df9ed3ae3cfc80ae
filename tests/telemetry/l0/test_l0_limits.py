"""The memory of L0, the blocks that it samples, and its bounds against clients."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from telemetry.l0.blocks import MAX_BLOCKS
from telemetry.l0.fingerprints import sampled
from telemetry.l0.instance import MAX_SESSION_TOKENS, MAX_SESSIONS
from telemetry.l0.lifecycle import MAX_INSTANCES, L0Lifecycle
from telemetry.l0.subscriber import L0Subscriber
from telemetry.metrics.label_limiter import MAX_MODELS, LabelLimiter
from tests.telemetry.l0.l0_model import Observations, record, report, session_ended

NOW = 1_000.0


def a_subscriber(sample_rate: float = 1.0) -> L0Subscriber:
    return L0Subscriber(sample_rate=sample_rate, session_idle_timeout_seconds=600.0)


@pytest.mark.parametrize("num_blocks", [50_000, 200_000])
def test_a_block_takes_at_most_64_bytes_with_the_tables_of_the_sessions_that_hold_it(num_blocks):
    per_session = 250
    events = [
        report(NOW, "a", record(f"s{i}", range(i * per_session, (i + 1) * per_session), [i] * 4_000), block_size=16)
        for i in range(num_blocks // per_session)
    ]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        subscriber = a_subscriber()
        for event in events:
            subscriber.handle([event])
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert subscriber.counts()["a"].owned == num_blocks
    assert subscriber.nbytes / num_blocks <= 64  # with the rows, which are not Python's
    assert (after - before) / num_blocks <= 16


def test_a_share_of_the_blocks_is_sampled():
    assert sampled("a", 0, 1_000_000, 0.01).sum() == pytest.approx(10_000, abs=1_000)
    assert not sampled("a", 0, 1_000, 0.0).any()
    assert sampled("a", 0, 1_000, 1.0).all()
    assert (sampled("a", 0, 10_000, 0.1) != sampled("b", 0, 10_000, 0.1)).any()


def test_the_same_blocks_are_sampled_after_a_restart_and_in_any_order():
    program = (
        "from telemetry.l0.fingerprints import sampled\nprint(sampled('a', 0, 1_000_000, 0.01).nonzero()[0].sum())"
    )
    restarted = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    whole = sampled("a", 0, 1_000_000, 0.01)
    assert int(restarted.stdout) == whole.nonzero()[0].sum()
    assert (sampled("a", 123_456, 200_000, 0.01) == whole[123_456:200_000]).all()


def test_only_sampled_blocks_are_observed_and_all_are_counted():
    seen = Observations()
    lifecycle = L0Lifecycle(seen, sample_rate=0.1, session_idle_timeout_seconds=600.0)
    for round_number in range(2):
        for i in range(100):
            entry = record(f"s{i}", range(i * 10, i * 10 + 10), [round_number + 1] * 160)
            lifecycle.handle([report(NOW + round_number, "a", entry, block_size=16)])
    (evictions,) = seen.evictions.values()
    assert [block_id for block_id, _, _ in evictions] == sampled("a", 0, 1_000, 0.1).nonzero()[0].tolist()
    assert lifecycle.counts()["a"].evictions == 1_000


NUM_RECORDS = 8_192
LIMIT = 60
"""Times what two million steps of a generator cost. 25 were measured."""


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([record("s", [], [], [1, 2])] * NUM_RECORDS, id="the same blocks"),
        pytest.param([record("s", [], [], [number]) for number in range(NUM_RECORDS)], id="reused blocks"),
        pytest.param([record("s", [number], []) for number in range(NUM_RECORDS)], id="new blocks"),
        pytest.param([record(f"s{number}", [], [], range(100)) for number in range(10_000)], id="shared blocks"),
    ],
)
def test_a_record_costs_as_much_for_a_long_table_as_for_a_short_one(records):
    subscriber = a_subscriber()
    unit = cpu_seconds(lambda: sum(number % 7 for number in range(2_000_000)))
    seconds = cpu_seconds(lambda: subscriber.handle([report(NOW, "a", *records, block_size=16)]))
    assert seconds < LIMIT * unit


def test_surplus_tokens_are_ignored_and_counted():
    subscriber = a_subscriber()
    subscriber.handle([report(NOW, "a", record("s", [1], list(range(40))), block_size=16)])
    assert subscriber.num_malformed == 1
    subscriber.handle([session_ended(NOW, "a", "s")])
    subscriber.handle([report(NOW, "a", record("t", [1], list(range(16))), block_size=16)])
    assert (subscriber.counts()["a"].reuses, subscriber.num_malformed) == (1, 1)


def test_a_record_with_an_impossible_block_or_table_changes_nothing_and_is_counted():
    subscriber = a_subscriber()
    tokens = list(range(16))
    bad = [
        report(NOW, "a", record("s", [1, MAX_BLOCKS], tokens), block_size=16),
        report(NOW, "a", record("s", [1], tokens, reused_block_ids=[2**32 - 1]), block_size=16),
        report(NOW, "a", record("s", np.ones(MAX_SESSION_TOKENS // 16 + 1), tokens), block_size=16),
        report(NOW, "a", record("s", [1], tokens), block_size=0),
    ]
    before = subscriber.nbytes
    subscriber.handle(bad)
    assert subscriber.num_malformed == len(bad)
    assert subscriber.nbytes - before < 200_000
    assert subscriber.counts()["a"].allocations == 0


def test_blocks_of_a_record_that_was_too_long_to_follow_are_not_let_go_of():
    subscriber = a_subscriber()
    subscriber.handle([report(NOW, "a", record("s", [1] * 2_000, []), block_size=16), session_ended(NOW, "a", "s")])
    assert (subscriber.counts()["a"].owned, subscriber.counts()["a"].unknown, subscriber.num_malformed) == (0, 0, 1)


def test_many_reused_blocks_without_tokens_are_followed():
    subscriber = a_subscriber()
    subscriber.handle([report(NOW, "a", record("s", [], [], range(10_000)), block_size=16)])
    assert (subscriber.counts()["a"].owned, subscriber.num_malformed) == (10_000, 0)


def test_the_largest_block_id_is_followed_without_touching_the_rows_before_it():
    subscriber = a_subscriber()
    subscriber.handle([report(NOW, "a", record("s", [MAX_BLOCKS - 1], list(range(16))), block_size=16)])
    assert (subscriber.counts()["a"].owned, subscriber.num_malformed) == (1, 0)


def test_the_longest_table_is_followed():
    subscriber = a_subscriber()
    num_blocks = MAX_SESSION_TOKENS // 16
    tokens = np.arange(MAX_SESSION_TOKENS, dtype=np.uint32)
    subscriber.handle([report(NOW, "a", record("s", np.arange(num_blocks), tokens), block_size=16)])
    subscriber.handle([session_ended(NOW, "a", "s")])
    subscriber.handle([report(NOW, "a", record("t", np.arange(num_blocks), tokens), block_size=16)])
    assert (subscriber.counts()["a"].reuses, subscriber.num_malformed) == (num_blocks, 0)


def test_of_too_many_sessions_the_one_that_was_quiet_for_longest_ends():
    subscriber = a_subscriber()
    records = [record(f"s{i}", [i], []) for i in range(MAX_SESSIONS)]
    subscriber.handle([report(NOW, "a", *records, block_size=16)])
    subscriber.handle([report(NOW, "a", record("s0", [], []), record("one more", [MAX_SESSIONS], []), block_size=16)])
    assert subscriber.counts()["a"].owned == MAX_SESSIONS
    subscriber.handle([session_ended(NOW, "a", "s1")])  # the one that ended
    assert subscriber.counts()["a"].owned == MAX_SESSIONS
    subscriber.handle([session_ended(NOW, "a", "s0")])
    assert subscriber.counts()["a"].owned == MAX_SESSIONS - 1


def test_of_too_many_instances_one_without_sessions_is_forgotten_first():
    subscriber = a_subscriber()
    for i in range(MAX_INSTANCES):
        subscriber.handle([report(NOW, f"i{i}", record("s", [1], list(range(16))), block_size=16)])
    subscriber.handle([session_ended(NOW, "i7", "s")])
    subscriber.handle([report(NOW, "one more", record("s", [1], []), block_size=16)])
    released = {name for name, counts in subscriber.counts().items() if not counts.owned}
    assert released == {"i7"}
    subscriber.handle([report(NOW, "and another", record("s", [1], []), block_size=16)])
    released = {name for name, counts in subscriber.counts().items() if not counts.owned}
    assert released == {"i0", "i7"}


def test_counts_of_instances_that_went_are_bounded():
    subscriber = a_subscriber()
    for i in range(3 * MAX_INSTANCES):
        subscriber.handle([report(NOW, f"i{i}", record("s", [1], []), block_size=16)])
    assert len(subscriber.counts()) == 2 * MAX_INSTANCES


def test_a_failure_leaves_the_other_instances_as_they_were():
    class Failing(Observations):
        def evicted(self, source, block_ids, lifetime_seconds, idle_seconds):
            if source.instance_id == "a":
                raise RuntimeError("an observer that fails")
            super().evicted(source, block_ids, lifetime_seconds, idle_seconds)

    seen = Failing()
    lifecycle = L0Lifecycle(seen, sample_rate=1.0, session_idle_timeout_seconds=600.0)
    for instance_id in "ab":
        lifecycle.handle([report(NOW, instance_id, record("s", [1], [1]), block_size=1)])
    with pytest.raises(RuntimeError):
        lifecycle.handle([report(NOW + 1, "a", record("t", [1], [2]), block_size=1)])
    lifecycle.handle([report(NOW + 1, "b", record("t", [1], [2]), block_size=1)])
    (evictions,) = seen.evictions.values()
    assert evictions == [(1, 1.0, 0.0)]
    assert lifecycle.counts()["b"].allocations == 2


def test_a_sample_rate_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"1\.5"):
        a_subscriber(sample_rate=1.5)


def test_a_model_is_named_in_the_histograms_as_it_is_exported():
    subscriber = L0Subscriber(sample_rate=1.0, session_idle_timeout_seconds=600.0, exported=LabelLimiter().exported)
    num_models = MAX_MODELS + 2
    for number in range(num_models):
        for tokens in ([1] * 16, [2] * 16):
            block = record(f"s{number}-{tokens[0]}", [0], tokens)
            subscriber.handle([report(NOW, f"i{number}", block, model_name=f"m{number}", block_size=16)])
    points = subscriber.histograms[0].points()
    assert {point.attributes[1] for point in points} == {*(f"m{number}" for number in range(MAX_MODELS)), "other"}
