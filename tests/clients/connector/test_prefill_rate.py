"""The measured rate of prefill: right for every way in which an engine schedules, and unknown rather than wrong."""

from __future__ import annotations

import pytest

from kvdepot.connector.prefill_rate import MAX_STEPS, MIN_STEPS, PrefillRate
from tests.fakes.clock import Clock

PREFILL = {"one": 1000, "two": 24}
DECODE = {f"request-{number}": 1 for number in range(100)}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rate(clock: Clock) -> PrefillRate:
    return PrefillRate(0.0, 1, clock)


def make_step(rate: PrefillRate, clock: Clock, scheduled: dict[str, int], seconds: float) -> None:
    rate.step(scheduled)
    clock.advance(seconds)


def test_rate_is_unknown_until_enough_steps_were_seen(rate: PrefillRate, clock: Clock) -> None:
    for _ in range(MIN_STEPS + 1):  # the time of a step is known after the next one
        assert rate.tokens_per_second is None
        make_step(rate, clock, PREFILL, 0.5)
    rate.step({})
    assert rate.tokens_per_second == pytest.approx(2048)


def test_steps_of_decode_neither_count_nor_change_the_rate(rate: PrefillRate, clock: Clock) -> None:
    for _ in range(2 * MIN_STEPS):
        make_step(rate, clock, DECODE, 0.1)
    assert rate.tokens_per_second is None
    for _ in range(MIN_STEPS):
        make_step(rate, clock, {**DECODE, **PREFILL}, 0.5)
        make_step(rate, clock, DECODE, 0.1)
    rate.step(DECODE)
    assert rate.tokens_per_second == pytest.approx(2048)


def test_steps_with_many_tokens_of_decode_do_not_count(rate: PrefillRate, clock: Clock) -> None:
    for _ in range(2 * MIN_STEPS):
        make_step(rate, clock, {**DECODE, "one": 200}, 0.5)
    assert rate.tokens_per_second is None


def test_short_prompts_alone_do_not_count(rate: PrefillRate, clock: Clock) -> None:
    """Such a step takes as long as one of a few hundred tokens."""
    for _ in range(2 * MIN_STEPS):
        make_step(rate, clock, {"one": 40}, 0.5)
    assert rate.tokens_per_second is None


def test_drafts_of_speculative_decoding_are_no_prefill(rate: PrefillRate, clock: Clock) -> None:
    for _ in range(2 * MIN_STEPS):
        make_step(rate, clock, dict.fromkeys(DECODE, 8), 0.5)
    assert rate.tokens_per_second is None


def test_time_without_requests_does_not_count(rate: PrefillRate, clock: Clock) -> None:
    for _ in range(MIN_STEPS):
        make_step(rate, clock, PREFILL, 0.5)
        make_step(rate, clock, {"one": 1}, 0.1)
        rate.idle()
        clock.advance(1000)
    assert rate.tokens_per_second == pytest.approx(2048)


def test_request_that_ends_with_its_prefill_counts(rate: PrefillRate, clock: Clock) -> None:
    for _ in range(MIN_STEPS):
        make_step(rate, clock, PREFILL, 0.5)
        rate.idle()
        clock.advance(1000)
    assert rate.tokens_per_second == pytest.approx(2048)


@pytest.mark.parametrize("steps_ahead", [1, 2, 4])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
def test_engine_that_schedules_ahead_is_not_faster_for_it(clock: Clock, steps_ahead: int, num_steps: int) -> None:
    """The first schedules follow each other at once. Each later one waits for the end of a step before."""
    rate = PrefillRate(0.0, steps_ahead, clock)
    for _ in range(2 * MIN_STEPS):
        for number in range(num_steps):
            rate.step(PREFILL)
            clock.advance(0.001 if number < steps_ahead else 0.5)
        for _ in range(steps_ahead):
            rate.step({"one": 1})
            clock.advance(0.5)
        rate.idle()
        clock.advance(100)
    assert rate.tokens_per_second == pytest.approx(2048)


def test_pause_of_an_engine_with_requests_does_not_change_the_rate(rate: PrefillRate, clock: Clock) -> None:
    for number in range(4 * MIN_STEPS):
        make_step(rate, clock, PREFILL, 1000.0 if number % 8 == 0 else 0.5)
    assert rate.tokens_per_second == pytest.approx(2048)


def test_rate_follows_an_engine_that_becomes_slower(rate: PrefillRate, clock: Clock) -> None:
    for seconds in (0.5, 1.0):
        for _ in range(MAX_STEPS + 2):
            make_step(rate, clock, PREFILL, seconds)
    assert rate.tokens_per_second == pytest.approx(1024)


def test_configured_rate_counts_at_once_and_stays(clock: Clock) -> None:
    rate = PrefillRate(500.0, 1, clock)
    assert rate.tokens_per_second == 500.0
    for _ in range(2 * MIN_STEPS):
        make_step(rate, clock, PREFILL, 0.5)
    rate.idle()
    assert rate.tokens_per_second == 500.0


def test_clock_that_stands_still_gives_no_rate(rate: PrefillRate, clock: Clock) -> None:
    for _ in range(2 * MIN_STEPS):
        make_step(rate, clock, PREFILL, 0.0)
    assert rate.tokens_per_second is None
