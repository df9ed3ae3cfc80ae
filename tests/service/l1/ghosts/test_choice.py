"""The choice of a policy: a clear advantage changes it, noise does not."""

from __future__ import annotations

import random

import pytest

from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.choice import LOOKS_IN_A_ROW, MIN_USES, USES_PER_LOOK, Choice
from service.l1.ghosts.sizes import CHOSEN_AMONG, OF_L1
from service.l1.ghosts.tally import NUM_PARTS

HIT_RATIOS = dict.fromkeys(CHOSEN_AMONG, 0.3)


def play(
    choice: Choice, policy: PolicyName, hit_ratios: dict[PolicyName, float], num_uses: int, rng: random.Random
) -> list[tuple[int, PolicyName]]:
    """Play uses that each policy hits with a chance of its own. Return when another one is chosen, and which."""
    changes = []
    for number in range(num_uses):
        residence = sum(1 << OF_L1[name] for name, ratio in hit_ratios.items() if rng.random() < ratio)
        own = -1 if residence >> OF_L1[policy] & 1 else 0
        choice.note(residence, (residence ^ own) & sum(1 << bit for bit in OF_L1.values()), rng.randrange(NUM_PARTS), 1)
        better = choice.better_than(policy)
        if better is not None:
            changes.append((number, better))
            policy = better
    return changes


@pytest.mark.parametrize("better", [name for name in CHOSEN_AMONG if name is not PolicyName.LEARNED])
def test_a_policy_that_saves_clearly_more_is_chosen_once(better: PolicyName) -> None:
    changes = play(Choice(), PolicyName.LEARNED, HIT_RATIOS | {better: 0.5}, 40_000, random.Random(1))
    assert [name for _, name in changes] == [better]


def test_nothing_changes_before_enough_was_seen() -> None:
    [(number, _)] = play(Choice(), PolicyName.LEARNED, HIT_RATIOS | {PolicyName.LRU: 0.9}, 40_000, random.Random(1))
    assert number + 1 == MIN_USES + (LOOKS_IN_A_ROW - 1) * USES_PER_LOOK


@pytest.mark.parametrize("seed", range(20))
def test_equal_policies_never_change(seed: int) -> None:
    assert play(Choice(), PolicyName.LEARNED, HIT_RATIOS, 60_000, random.Random(seed)) == []


def test_an_advantage_that_is_certain_and_too_small_changes_nothing() -> None:
    choice = Choice()
    for number in range(50_000):  # one hit more of 250 uses: 0.4 %
        residence = 1 << OF_L1[PolicyName.LFU] if number % 250 == 0 else 0
        choice.note(residence, residence, number // 250 % NUM_PARTS, 1.0)
        assert choice.better_than(PolicyName.LEARNED) is None


def test_when_the_traffic_changes_the_policy_follows() -> None:
    choice, rng = Choice(), random.Random(2)
    [(_, first)] = play(choice, PolicyName.LEARNED, HIT_RATIOS | {PolicyName.LFU: 0.4}, 30_000, rng)
    [(_, second)] = play(choice, first, HIT_RATIOS | {PolicyName.LRU: 0.4}, 30_000, rng)
    assert (first, second) == (PolicyName.LFU, PolicyName.LRU)


def test_a_policy_that_saves_more_than_a_simulation_and_less_than_the_depot_is_not_chosen() -> None:
    choice, rng = Choice(), random.Random(3)
    hit_ratios = HIT_RATIOS | {PolicyName.LRU2: 0.4}
    for _ in range(40_000):  # a small simulation of the policy in use hits less than the depot itself
        residence = sum(1 << OF_L1[name] for name, ratio in hit_ratios.items() if rng.random() < ratio)
        own = -1 if rng.random() < 0.5 else 0
        choice.note(residence, (residence ^ own) & sum(1 << bit for bit in OF_L1.values()), rng.randrange(NUM_PARTS), 1)
        assert choice.better_than(PolicyName.LEARNED) is None
