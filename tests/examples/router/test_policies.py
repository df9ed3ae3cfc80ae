"""A policy sends a request where its prefix is, until that depot has more than its share."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from examples.router.index import Match
from examples.router.policies import LongestPrefix, PolicyName, Random, RoundRobin, make_policy

NOTHING = Match()
ALL = range(3)


def full(tokens: int, worth: float = 1.0) -> Match:
    return Match(tokens, tokens * worth)


def test_the_longest_prefix_gets_the_request() -> None:
    policy = LongestPrefix(3)
    assert policy.choose(100, [NOTHING, full(80), full(40)], ALL) == 1


def test_memory_is_worth_more_than_a_disk() -> None:
    policy = LongestPrefix(3)
    assert policy.choose(100, [full(80, 0.5), full(60), NOTHING], ALL) == 1


def test_among_near_equals_the_least_loaded_gets_the_request() -> None:
    policy = LongestPrefix(3, load_bound=3.0)
    matches = [full(100), full(91), full(80)]
    assert [policy.choose(100, matches, ALL) for _ in range(4)] == [0, 1, 0, 1]


def test_without_load_near_equals_leave_the_longest_prefix_first() -> None:
    assert LongestPrefix(3).choose(100, [full(91), full(100), full(95)], ALL) == 1


def test_one_depot_with_all_prefixes_gets_no_more_than_its_bound() -> None:
    policy = LongestPrefix(3, load_bound=1.25)
    shares = Counter(policy.choose(100, [full(100), NOTHING, NOTHING], ALL) for _ in range(3_000))
    assert 1_200 < shares[0] < 1_300  # 1.25 times the mean of 1,000
    assert shares[1] > 800
    assert shares[2] > 800


def test_load_of_long_ago_does_not_count() -> None:
    policy = LongestPrefix(2, half_life_requests=1.0)
    assert policy.choose(1_000_000, [full(1_000_000), NOTHING], range(2)) == 0
    chosen = [policy.choose(100, [full(100), NOTHING], range(2)) for _ in range(30)]
    assert chosen[0] == 1
    assert 0 in chosen


@given(
    st.lists(st.tuples(st.sets(st.sampled_from(ALL), min_size=1), st.tuples(*[st.integers(0, 100)] * 3)), max_size=20)
)
def test_each_policy_chooses_a_depot_that_answers(requests: list[tuple[set[int], tuple[int, ...]]]) -> None:
    for policy in (make_policy(name, 3) for name in PolicyName):
        for depots, tokens in requests:
            assert policy.choose(100, list(map(full, tokens)), sorted(depots)) in depots


def test_round_robin_takes_turns() -> None:
    policy = RoundRobin()
    assert [policy.choose(1, [NOTHING] * 3, ALL) for _ in range(4)] == [0, 1, 2, 0]


def test_random_reaches_all_and_repeats_with_its_seed() -> None:
    first, again = Random(), Random()
    chosen = [first.choose(1, [NOTHING] * 3, ALL) for _ in range(100)]
    assert set(chosen) == {0, 1, 2}
    assert chosen == [again.choose(1, [NOTHING] * 3, ALL) for _ in range(100)]
