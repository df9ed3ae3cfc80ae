"""Routers spread requests as their names say, the same way each time."""

from __future__ import annotations

from collections import Counter

import pytest

from kvdepot.cli.request_router import RouterName, routes

SAME_BEGIN = [(0, *range(10 * n, 10 * n + 9)) for n in range(1, 31)]
"""Thirty prompts of ten blocks, which share the first."""


def test_round_robin_takes_turns() -> None:
    assert routes([(1,)] * 5, RouterName.ROUND_ROBIN, num_nodes=3, l1_chunks=8) == [0, 1, 2, 0, 1]


def test_random_is_the_same_for_a_seed_and_reaches_all_nodes() -> None:
    def chosen(seed: int) -> list[int]:
        return routes([(1,)] * 300, RouterName.RANDOM, num_nodes=3, l1_chunks=8, seed=seed)

    assert chosen(0) == chosen(0) != chosen(1)
    assert set(Counter(chosen(0)).values()) <= set(range(70, 131))


def test_prefix_sends_the_next_turn_of_a_conversation_where_the_last_one_was() -> None:
    turns = [request for first in SAME_BEGIN for request in (first, (*first, first[-1] + 1000))]
    chosen = routes(turns, RouterName.PREFIX, num_nodes=3, l1_chunks=1_000)
    assert chosen[::2] == chosen[1::2]
    assert len(set(chosen)) == 3


def test_prefix_does_not_send_all_that_begins_alike_to_one_node() -> None:
    chosen = routes(SAME_BEGIN, RouterName.PREFIX, num_nodes=3, l1_chunks=1_000)
    assert Counter(chosen) == {0: 10, 1: 10, 2: 10}


def test_prefix_prefers_the_longest_match_to_the_lightest_load() -> None:
    long = tuple(range(20))
    requests = [long[:4], (90,), (91,), long[:8], long]
    assert routes(requests, RouterName.PREFIX, num_nodes=2, l1_chunks=1_000) == [0, 1, 1, 0, 1], (
        "eight of twenty blocks are less than half"
    )


@pytest.mark.parametrize(("l1_chunks", "node"), [(100, 0), (4, 1)])
def test_prefix_forgets_what_a_node_has_no_room_for(l1_chunks: int, node: int) -> None:
    first, second, third = (0, 1, 2, 3), (10, 11, 12, 13), (20, 21, 22, 23)
    requests = [first, second, third, first]  # the third goes to node 0, too
    assert routes(requests, RouterName.PREFIX, num_nodes=2, l1_chunks=l1_chunks) == [0, 1, 0, node]


@pytest.mark.parametrize("name", list(RouterName))
def test_empty_prompts_and_single_nodes_are_routed(name: RouterName) -> None:
    assert routes([(), (1,), ()], name, num_nodes=1, l1_chunks=1) == [0, 0, 0]
    assert len(routes([(), (), ()], name, num_nodes=2, l1_chunks=1)) == 3
