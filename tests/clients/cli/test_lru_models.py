"""The models of caches agree with sorted lists, and nodes that share nothing count for themselves."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kvdepot.cli.lru_models import PlainLru, PrefixLru, island_hits, plain_lru_hits, unlimited_hits

REQUESTS = st.lists(st.lists(st.integers(0, 12), max_size=6, unique=True).map(tuple), max_size=30)


def num_leading(request: Sequence[int], resident: Sequence[int]) -> int:
    return next((i for i, hash_id in enumerate(request) if hash_id not in resident), len(request))


@given(REQUESTS, st.integers(1, 10))
def test_plain_lru_agrees_with_a_sorted_list(requests: list[tuple[int, ...]], capacity: int) -> None:
    lru = PlainLru(capacity)
    resident: list[int] = []  # the least recently used first
    for request in requests:
        assert lru.request(request) == num_leading(request, resident)
        for hash_id in request:
            resident = [other for other in resident if other != hash_id] + [hash_id]
            resident = resident[-capacity:]


@given(REQUESTS, st.integers(1, 10))
def test_prefix_lru_drops_the_tail_of_a_prompt_first(requests: list[tuple[int, ...]], capacity: int) -> None:
    lru = PrefixLru(capacity)
    resident: list[int] = []
    for request in requests:
        hits = num_leading(request, resident)
        assert lru.num_leading(request) == hits, "to look is no use"
        assert lru.request(request) == hits
        resident = [other for other in resident if other not in request] + list(reversed(request))
        resident = resident[-capacity:]


@given(REQUESTS)
def test_no_cache_has_more_hits_than_one_that_keeps_everything(requests: list[tuple[int, ...]]) -> None:
    most = unlimited_hits(requests)
    assert plain_lru_hits(requests, 13) == most
    for capacity in (1, 4):
        assert plain_lru_hits(requests, capacity) <= most


def test_islands_find_only_what_they_were_sent() -> None:
    requests = [(1, 2), (1, 2), (1, 2, 3), (1, 2, 3)]
    assert island_hits(requests, [0, 0, 0, 0], 8) == 2 + 2 + 3
    assert island_hits(requests, [0, 1, 0, 1], 8) == 0 + 0 + 2 + 2
    assert island_hits(requests, [0, 1, 0, 1], 1) == 1 + 1, "each has room for one block"
