"""The rate at which an instance prefills: reported, or measured robustly, or not known."""

from __future__ import annotations

import pytest

from telemetry.metrics import prefill
from telemetry.metrics.prefill import NUM_NEEDED, NUM_REMEMBERED, PrefillRates

TOKENS = 1_000


@pytest.fixture
def rates() -> PrefillRates:
    rates = PrefillRates()
    rates.attached("e", None)
    return rates


def prefilled(rates: PrefillRates, seconds: float, *, first_token: int = 0, end_token: int = TOKENS) -> None:
    """A session misses from a token on, and stores after some seconds."""
    rates.looked_up("e", "s", first_token, TOKENS, 100.0)
    rates.stored("e", "s", end_token, 100.0 + seconds)


def measured(rates: PrefillRates) -> float:
    found = rates.rate("e")
    assert found is not None
    assert found[1] == "measured"
    return found[0]


def test_a_rate_is_not_known_before_enough_prefills(rates: PrefillRates) -> None:
    for _ in range(NUM_NEEDED - 1):
        prefilled(rates, 1.0)
        assert rates.rate("e") is None
    prefilled(rates, 1.0)
    assert rates.rate("e") == (TOKENS, "measured")
    assert rates.rate("other") is None


def test_a_reported_rate_is_used_at_once_and_before_a_measured_one(rates: PrefillRates) -> None:
    for _ in range(NUM_NEEDED):
        prefilled(rates, 1.0)
    rates.attached("e", 5_000.0)
    assert rates.rate("e") == (5_000.0, "reported")
    rates.attached("e", None)  # another rank reports nothing
    assert rates.rate("e") == (5_000.0, "reported")


def test_prefills_that_waited_in_the_engines_queue_do_not_lower_the_rate(rates: PrefillRates) -> None:
    for seconds in (1.0, 1.0, 30.0, 60.0, 1.0, 20.0, 1.0, 40.0):
        prefilled(rates, seconds)
    assert measured(rates) == TOKENS


def test_a_few_prefills_out_of_the_engines_own_cache_do_not_raise_the_rate(rates: PrefillRates) -> None:
    for seconds in (1.0, 1.0, 0.001, 1.0, 1.0, 1.0):
        prefilled(rates, seconds)
    assert measured(rates) == TOKENS


def test_the_rate_follows_an_engine_that_becomes_slower(rates: PrefillRates) -> None:
    for _ in range(NUM_NEEDED):
        prefilled(rates, 1.0)
    for _ in range(NUM_REMEMBERED):
        prefilled(rates, 4.0)
    assert measured(rates) == TOKENS / 4


def test_only_the_tokens_of_the_prompt_that_were_missing_count(rates: PrefillRates) -> None:
    for _ in range(NUM_NEEDED):
        prefilled(rates, 1.0, first_token=600, end_token=5_000)  # the store has generated tokens, too
    assert measured(rates) == 400


def test_a_prefill_in_pieces_counts_up_to_its_first_store(rates: PrefillRates) -> None:
    for _ in range(NUM_NEEDED):
        prefilled(rates, 0.5, end_token=500)
        rates.stored("e", "s", TOKENS, 200.0)
    assert measured(rates) == 1_000


def test_the_time_of_a_retrieve_is_no_prefill(rates: PrefillRates) -> None:
    for _ in range(NUM_NEEDED):
        rates.looked_up("e", "s", 500, TOKENS, 100.0)
        rates.retrieved("e", "s", 103.0)
        rates.stored("e", "s", TOKENS, 104.0)
    assert measured(rates) == 500


@pytest.mark.parametrize(
    "prefill_of",
    [
        {"first_token": TOKENS},  # a full hit
        {"first_token": TOKENS - 10},  # too few tokens
        {"first_token": 500, "end_token": 400},  # a store of what was there
        {"seconds": 0.0},
    ],
)
def test_what_says_nothing_about_the_rate_does_not_count(rates: PrefillRates, prefill_of: dict[str, float]) -> None:
    for _ in range(NUM_NEEDED):
        prefilled(rates, **{"seconds": 1.0, **prefill_of})  # type: ignore[arg-type]  # tokens are whole
        rates.ended("e", "s")
    assert rates.rate("e") is None
    for _ in range(NUM_NEEDED):
        prefilled(rates, 1.0)
    assert measured(rates) == TOKENS


def test_nothing_grows_without_a_limit(rates: PrefillRates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "MAX_WAITING", 3)
    monkeypatch.setattr(prefill, "MAX_INSTANCES", 3)
    for number in range(9):
        rates.attached(f"e{number}", 1.0)
        rates.looked_up(f"e{number}", "s", 0, TOKENS, 1.0)
        rates.looked_up("unknown", f"s{number}", 0, TOKENS, 1.0)
    assert repr(rates) == "<PrefillRates of 3 instances, 3/3 sessions wait>"
    rates.gone("e8")
    rates.ended("e8", "s")
    assert repr(rates) == "<PrefillRates of 2 instances, 2/3 sessions wait>"
