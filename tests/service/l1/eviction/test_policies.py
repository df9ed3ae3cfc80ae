"""Each policy evicts what it says. Whatever it is, the tail of a prefix leaves before its head."""

from __future__ import annotations

import random

import pytest

from service.l1.eviction.policy_name import PolicyName
from tests.service.l1.eviction.prompts import SLOT_BYTES, Prompts, requests

POLICIES = [name for name in PolicyName if name is not PolicyName.AUTO]


def test_lru_evicts_what_was_used_least_recently() -> None:
    prompts = Prompts(3, PolicyName.LRU)
    requests(prompts, "abcad")
    assert prompts.names == {"a0", "c0", "d0"}


def test_lru2_evicts_what_was_used_once_before_what_was_used_twice() -> None:
    prompts = Prompts(3, PolicyName.LRU2)
    requests(prompts, "aabcd")
    assert prompts.names == {"a0", "c0", "d0"}


def test_lru2_goes_by_the_last_use_but_one() -> None:
    prompts = Prompts(128, PolicyName.LRU2)
    old = [f"old{number}" for number in range(64)]
    new = [f"new{number}" for number in range(64)]
    requests(prompts, [*old, *old, *new, *new, *old])  # the old ones were used last, and first but one
    requests(prompts, [each for number in range(32) for each in (f"more{number}",) * 2])
    assert sum(name.startswith("new") for name in prompts.names) == 64


def test_lfu_evicts_what_was_used_least_often() -> None:
    prompts = Prompts(3, PolicyName.LFU)
    requests(prompts, "aaabbcd")
    assert prompts.names == {"a0", "b0", "d0"}


def test_lfu_lets_what_was_used_often_long_ago_age() -> None:
    prompts = Prompts(3, PolicyName.LFU)
    requests(prompts, "a" * 4 + "bcde" * 8)
    assert "a0" not in prompts.names


@pytest.mark.parametrize("policy", [PolicyName.LFU, PolicyName.LRU2, PolicyName.LEARNED])
def test_what_was_used_before_it_was_evicted_counts_when_it_comes_back(policy: PolicyName) -> None:
    prompts = Prompts(2, policy)
    [chunk] = prompts.request("a", 1)
    requests(prompts, "bc")
    assert chunk.removed
    [again] = prompts.request("a", 1)
    assert again.num_uses == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_one_request_counts_once(policy: PolicyName) -> None:
    prompts = Prompts(2, policy)
    [chunk] = prompts.request("a", 1)
    prompts.index.count_use([chunk], chunk.counted_request)
    assert chunk.num_uses == 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_a_prefix_shrinks_from_its_tail_with_sizes_tenants_pins_and_tiers_that_read(
    policy: PolicyName, seed: int
) -> None:
    prompts, choose = Prompts(120, policy), random.Random(seed)
    reading = []
    for _ in range(400):
        size = choose.choice([1, 1, 1, 3, 7])
        tenant = choose.choice(["x", "y"])
        prompt = f"{tenant}{size}-{choose.randrange(12)}-"
        chunks = prompts.request(prompt, choose.randrange(1, 9), slot_bytes=size * SLOT_BYTES, tenant=tenant)
        if chunks and choose.random() < 0.2:
            prompts.index.begin_reading(chunk := choose.choice(chunks))
            reading.append(chunk)
        while len(reading) > 6:
            prompts.index.end_reading(reading.pop(0))
        prompts.check()
    assert prompts.index.num_evicted > 100
    for chunk in reading:
        prompts.index.end_reading(chunk)
    prompts.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_head_leaves_with_the_tail_that_tiers_read_if_nothing_else_can(policy: PolicyName) -> None:
    prompts = Prompts(3, policy)
    _, left, _ = prompts.request("a", 3)
    tails = prompts.chunks("a", 3)[2:]
    prompts.index.begin_reading(tails[0])
    prompts.request("b", 1)
    assert left.removed
    assert tails[0].removed, "it can't be found without the chunk before it"
    assert prompts.names == {"a0", "b0"}
    prompts.index.end_reading(tails[0])
    prompts.request("c", 1)
    assert prompts.names == {"a0", "b0", "c0"}


def test_the_next_victims_are_named_in_the_order_in_which_they_leave() -> None:
    for policy in POLICIES:
        prompts, choose = Prompts(60, policy), random.Random(1)
        for _ in range(200):
            prompts.request(f"{choose.randrange(20)}-", choose.randrange(1, 8))
        named = [chunk.key for chunk in prompts.index.next_victims(SLOT_BYTES, 12)]
        before = {chunk.key for chunk in prompts.index.chunks()}
        prompts.request("new", 12)
        assert before - {chunk.key for chunk in prompts.index.chunks()} == set(named), policy


def test_rankings_do_not_grow_with_the_number_of_uses() -> None:
    for policy in POLICIES:
        prompts, choose = Prompts(256, policy), random.Random(1)
        requests(prompts, [f"kept{number}" for number in range(100)] * 2)
        for _ in range(4_000):
            prompts.request(f"kept{choose.randrange(100)}", 1)
            prompts.request(f"{choose.randrange(100_000)}-", 1)
        [ranking] = prompts.index._eviction._all()
        assert len(ranking._in_order) < 2_500, policy


@pytest.mark.parametrize("num_slots", [16, 50])
def test_lru_is_exact_also_where_prompts_share_their_heads(num_slots: int) -> None:
    prompts, choose = Prompts(num_slots, PolicyName.LRU), random.Random(1)
    held: dict[str, None] = {}  # the least recently used one first
    lengths = {f"{number}-": choose.randrange(1, 8) for number in range(12)}
    for _ in range(600):
        name = choose.choice(list(lengths))
        length = choose.randrange(1, lengths[name] + 1)  # a shorter prompt is the head of a longer one
        prompts.request(name, length)
        for position in reversed(range(length)):
            held.pop(f"{name}{position}", None)
            held[f"{name}{position}"] = None
        for oldest in list(held)[: max(0, len(held) - num_slots)]:
            del held[oldest]
        assert prompts.names == set(held)


def test_what_leaves_together_leaves_from_its_tail() -> None:
    prompts = Prompts(8)
    chunks = prompts.request("a", 5)
    leaving = prompts.index._eviction.with_descendants(chunks[1:2])
    assert [chunk.position for chunk in leaving] == [4, 3, 2, 1]
