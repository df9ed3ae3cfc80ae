"""The offline bound is what an exhaustive search finds, and no model of a cache has more hits."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvdepot.cli.lru_models import PrefixLru, plain_lru_hits, unlimited_hits
from kvdepot.cli.offline_bound import offline_bound_hits

Prompt = tuple[int, ...]
TOKENS = st.lists(st.lists(st.integers(0, 1), max_size=4).map(tuple), max_size=7)
"""Prompts as tuples of what is in their blocks. They share prefixes often."""


def as_requests(prompts: list[Prompt]) -> list[Prompt]:
    """Return the prompts' block ids: one for each different prefix."""
    ids: dict[Prompt, int] = {}
    return [tuple(ids.setdefault(prompt[: i + 1], len(ids)) for i in range(len(prompt))) for prompt in prompts]


def best_by_search(requests: list[Prompt], outputs: list[Prompt], capacity: int) -> int:
    """Try everything that a cache could keep after each request."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for request, output in zip(requests, outputs, strict=True):
        following: dict[frozenset[int], int] = {}
        for resident, hits in states.items():
            leading = next((i for i, block in enumerate(request) if block not in resident), len(request))
            available = resident | set(request) | set(output)
            for size in range(min(capacity, len(available)) + 1):
                for kept in map(frozenset, combinations(sorted(available), size)):
                    following[kept] = max(following.get(kept, 0), hits + leading)
        states = following
    return max(states.values())


@settings(max_examples=60)
@given(TOKENS, st.integers(1, 3))
def test_the_bound_is_the_best_that_any_choice_of_blocks_gives(prompts: list[Prompt], capacity: int) -> None:
    requests = as_requests(prompts)
    assert offline_bound_hits(requests, capacity) == best_by_search(requests, [()] * len(requests), capacity)


@settings(max_examples=60)
@given(TOKENS, st.integers(1, 3), st.data())
def test_what_requests_store_behind_their_prompts_may_be_kept_too(
    prompts: list[Prompt], capacity: int, data: st.DataObject
) -> None:
    whole = as_requests(prompts)
    lengths = [data.draw(st.integers(0, len(each))) for each in whole]
    requests = [each[:length] for each, length in zip(whole, lengths, strict=True)]
    outputs = [each[length:] for each, length in zip(whole, lengths, strict=True)]
    assert offline_bound_hits(requests, capacity, outputs) == best_by_search(requests, outputs, capacity)
    assert offline_bound_hits(requests, 1_000, outputs) == unlimited_hits(requests, outputs)


@given(st.lists(st.lists(st.integers(0, 3), max_size=6).map(tuple), max_size=40), st.integers(1, 12))
def test_no_cache_has_more_hits(prompts: list[Prompt], capacity: int) -> None:
    requests = as_requests(prompts)
    bound = offline_bound_hits(requests, capacity)
    assert plain_lru_hits(requests, capacity) <= bound
    assert sum(map(PrefixLru(capacity).request, requests)) <= bound
    assert bound <= unlimited_hits(requests)
    assert offline_bound_hits(requests, 10_000) == unlimited_hits(requests)


def test_a_scan_does_not_evict_what_returns() -> None:
    requests = [(1, 2), (3, 4), (1, 2), (5, 6), (1, 2)]
    assert plain_lru_hits(requests, 2) == 0
    assert offline_bound_hits(requests, 2) == 4


def test_an_id_counts_with_the_blocks_before_it() -> None:
    assert offline_bound_hits([(1, 2), (3, 2)], 8) == 0
    assert offline_bound_hits([(1, 1), (1, 1)], 8) == 2


def test_no_requests_have_no_hits() -> None:
    assert offline_bound_hits([], 8) == 0
    assert offline_bound_hits([(), ()], 8) == 0
