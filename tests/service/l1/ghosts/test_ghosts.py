"""Ghost caches: their estimates, what they count, and that their memory has a bound."""

from __future__ import annotations

import tracemalloc

import pytest

from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.ghosts import MAX_GROUPS, MIN_ENTRIES, Ghosts
from service.l1.past import RemovalReason
from tests.service.l1.ghosts.traffic import CHUNK_TOKENS, SLOT_BYTES, Traffic

MIB = 1 << 20


@pytest.mark.parametrize("salt", range(8))
def test_a_key_that_every_prompt_has_shifts_no_estimate(salt: int) -> None:
    traffic = Traffic(200, min_shift=3, salt=salt)
    for number in range(600):
        traffic.request(["hot", number])
    # Half of what is asked for is the hot chunk. Whether it is in the sample or not, all caches hit it, and no other.
    for factor in (0.25, 1.0, 8.0):
        assert traffic.ratio(PolicyName.LRU, factor) == pytest.approx(traffic.num_hit / traffic.num_asked, abs=0.02)


def test_a_loop_that_is_too_long_for_l1_hits_in_a_larger_cache_only() -> None:
    traffic = Traffic(800, min_shift=3)
    for number in range(12_000):
        traffic.request([number % 1_200])
    assert traffic.num_hit == 0
    assert traffic.ratio(PolicyName.LRU, 1.0) == 0.0
    assert traffic.ratio(PolicyName.LRU, 2.0) == pytest.approx(0.9, abs=0.1)
    assert traffic.ratio(PolicyName.LEARNED, 1.0) > 0.1


def test_the_standard_error_is_honest() -> None:
    estimates, errors = [], []
    for salt in range(8):
        traffic = Traffic(400, min_shift=3, salt=salt)
        for number in range(6_000):
            traffic.request([number * number % 2_003 % (300 + number % 1_200)])
        [curve] = traffic.index.ghosts.curves(float("inf"))
        point = next(each for each in curve.points if each.capacity_bytes == 1_600 * SLOT_BYTES)
        estimates.append(point.hit_tokens)
        errors.append(point.hit_tokens_error)
    mean = sum(estimates) / len(estimates)
    spread = (sum((each - mean) ** 2 for each in estimates) / (len(estimates) - 1)) ** 0.5
    assert 0.3 < spread / (sum(errors) / len(errors)) < 3


def test_what_an_answer_brings_is_not_asked_for_and_hits_later() -> None:
    traffic = Traffic(8)
    traffic.request(["a", "b", "answer"], num_answered=1)
    [curve] = traffic.index.ghosts.curves(float("inf"))
    assert (curve.asked_tokens, curve.hit_tokens) == (2 * CHUNK_TOKENS, 0)
    traffic.request(["a", "b", "answer", "c"])
    [curve] = traffic.index.ghosts.curves(float("inf"))
    assert (curve.asked_tokens, curve.num_asked_chunks, curve.hit_tokens) == (6 * CHUNK_TOKENS, 6, 3 * CHUNK_TOKENS)
    assert traffic.hit_tokens(PolicyName.LRU) == 3 * CHUNK_TOKENS


def test_each_tenant_and_model_has_a_curve_of_the_last_minutes() -> None:
    traffic = Traffic(64)
    traffic.request(["a"], tenant="old")
    traffic.clock.now = 3_600.0
    for _ in range(2):
        traffic.request(["b"], tenant="t", model_name="x")
    traffic.request(["c"], tenant="t", model_name="y")
    curves = traffic.index.ghosts.curves(60.0)
    assert [(curve.tenant, curve.model_name) for curve in curves] == [("t", "x"), ("t", "y")]
    assert [curve.hit_tokens for curve in curves] == [CHUNK_TOKENS, 0]
    assert {point.hit_tokens for point in curves[0].points} == {CHUNK_TOKENS}
    assert len(traffic.index.ghosts.curves(float("inf"))) == 3


def test_tenants_without_number_share_one_curve() -> None:
    traffic = Traffic(64)
    for number in range(MAX_GROUPS + 10):
        traffic.request([number], tenant=f"tenant {number}")
    curves = traffic.index.ghosts.curves(float("inf"))
    assert len(curves) == MAX_GROUPS + 1
    assert sum(curve.asked_tokens for curve in curves) == (MAX_GROUPS + 10) * CHUNK_TOKENS


def test_tiers_whose_size_is_known_have_a_point_each() -> None:
    traffic = Traffic(64)
    ghosts = traffic.index.ghosts
    ghosts.tier_capacities = lambda: [("disk", 640 * SLOT_BYTES), ("remote", None)]
    for number in range(300):
        traffic.request([number])
    traffic.request([0])
    [curve] = ghosts.curves(float("inf"))
    [point] = [point for point in curve.points if point.tiers]
    assert (point.tiers, point.capacity_bytes) == (("disk",), 704 * SLOT_BYTES)
    assert point.hit_tokens == CHUNK_TOKENS
    ghosts.check()


def test_a_chunk_that_was_cleared_is_in_no_cache() -> None:
    traffic = Traffic(64)
    traffic.request(["a"])
    [chunk] = list(traffic.index.chunks())
    traffic.index.remove(chunk, RemovalReason.CLEARED)
    traffic.request(["a"])
    assert traffic.hit_tokens(PolicyName.LRU, 8.0) == 0
    traffic.index.ghosts.check()


def test_smaller_slots_than_before_make_the_sample_smaller() -> None:
    traffic = Traffic(40_000)
    ghosts = traffic.index.ghosts
    for number in range(50):
        traffic.request([f"large {number}"], slot_bytes=100 * SLOT_BYTES)
    before = ghosts.sampling_rate
    for number in range(3_000):
        traffic.request([f"small {number}", f"also {number}"])
    assert ghosts.sampling_rate < before
    ghosts.check()
    assert traffic.hit_tokens(PolicyName.LRU, 8.0) == 0


def test_the_memory_has_a_bound() -> None:
    tracemalloc.start()
    traffic = Traffic(128)
    ghosts = traffic.index.ghosts
    for number in range(MIN_ENTRIES // 100 + 5):
        traffic.request([f"{number}/{position}" for position in range(100)])
    ghosts.check()
    traffic.index.uses.ghosts = Ghosts(1, traffic.policies)
    past, _ = tracemalloc.get_traced_memory()
    assert f"{MIN_ENTRIES}/{MIN_ENTRIES} chunks" in repr(ghosts)
    del ghosts
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert past - after < 3 * MIB
