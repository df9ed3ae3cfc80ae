"""The learned policy keeps what is likely to come back soon, and what saves most when it does."""

from __future__ import annotations

import random

import pytest

from service.l1.eviction.policy_name import PolicyName
from tests.service.l1.eviction.prompts import SLOT_BYTES, Prompts

HALF_THE_SLOTS = 250


def kept(prompts: Prompts, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in prompts.names)


def hits_of(prompts: Prompts, name: str, length: int) -> int:
    """Make a request, and return how many of its chunks were there."""
    num_there = len(prompts.chunks(name, length))
    prompts.request(name, length)
    return num_there


def test_what_is_asked_for_again_and_again_is_kept_from_a_scan() -> None:
    hits = {}
    for policy in (PolicyName.LRU, PolicyName.LEARNED):
        prompts, choose = Prompts(200, policy), random.Random(3)
        hits[policy] = 0
        for number in range(8_000):
            if number % 2:
                prompts.request(f"scan{number}-", 1)
            else:
                hits[policy] += hits_of(prompts, f"hot{choose.randrange(160)}-", 1)
    assert hits[PolicyName.LEARNED] > 1.15 * hits[PolicyName.LRU]


def test_a_loop_that_is_longer_than_the_cache_hits_in_part() -> None:
    hits = {}
    for policy in (PolicyName.LRU, PolicyName.LEARNED):
        prompts = Prompts(200, policy)
        hits[policy] = sum(hits_of(prompts, f"{number % 300}-", 1) for number in range(9_000))
    assert hits[PolicyName.LRU] == 0
    assert hits[PolicyName.LEARNED] > 1_000


def test_of_two_models_the_chunks_stay_that_cost_more_to_compute() -> None:
    prompts, choose = Prompts(2 * HALF_THE_SLOTS), random.Random(3)
    for _ in range(6_000):
        number = choose.randrange(400)
        prompts.request(f"quick{number}-", 1, prefill_rate=20_000)
        prompts.request(f"slow{number}-", 1, prefill_rate=2_000)
    assert kept(prompts, "slow") > 1.5 * kept(prompts, "quick")


def test_of_two_models_the_chunks_stay_that_are_smaller() -> None:
    prompts, choose = Prompts(2 * HALF_THE_SLOTS), random.Random(3)
    for _ in range(3_000):
        number = choose.randrange(200)
        prompts.request(f"large{number}-", 1, slot_bytes=4 * SLOT_BYTES)
        prompts.request(f"small{number}-", 1)
    assert kept(prompts, "small") > 2 * kept(prompts, "large")


@pytest.mark.parametrize("read_seconds", [0.001, None, 100.0])
def test_a_chunk_that_a_tier_reads_quickly_is_cheaper_to_lose(read_seconds: float | None) -> None:
    prompts, choose = Prompts(2 * HALF_THE_SLOTS), random.Random(3)
    prompts.index.worth.tier_read_seconds = lambda num_bytes, in_tiers: read_seconds
    for _ in range(6_000):
        number = choose.randrange(800)
        for chunk in prompts.request(f"{number}-", 1):
            if number % 2 and not chunk.in_tiers:
                prompts.index.begin_reading(chunk)
                chunk.in_tiers = 1
                prompts.index.end_reading(chunk)
    in_tiers = sum(bool(chunk.in_tiers) for chunk in prompts.index.chunks())
    if read_seconds == 0.001:
        assert in_tiers < 0.6 * HALF_THE_SLOTS
    else:
        assert in_tiers == pytest.approx(HALF_THE_SLOTS, rel=0.2), "to compute it is as quick"


def test_what_a_session_says_about_its_return_counts_as_much_as_it_was_right() -> None:
    for truth in (0.9, 0.1):  # the chance that a prompt comes back whose session said that it goes on
        prompts, choose = Prompts(120), random.Random(3)
        coming: list[str] = []
        for number in range(12_000):
            if len(coming) > 150:
                prompts.request(coming.pop(0), 1)
            says = bool(number % 2)
            name = f"{'on' if says else 'off'}{number}-"
            prompts.request(name, 1, will_continue=says)
            if choose.random() < (truth if says else 0.5):
                coming.append(name)
        waiting = [name for name in coming if prompts.chunks(name, 1)]
        kept_on = sum(name.startswith("on") for name in waiting) / sum(name.startswith("on") for name in coming)
        kept_off = sum(name.startswith("off") for name in waiting) / sum(name.startswith("off") for name in coming)
        assert (kept_on > kept_off) is (truth > 0.5), truth
