"""Saved seconds of prefill are the sum over the tokens that were hits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdepot.cli.prefill_model import PrefillModel


@given(st.lists(st.integers(0, 20), max_size=5), st.integers(1, 40))
def test_saved_seconds_are_those_of_each_token(hits_by_request: list[int], block_tokens: int) -> None:
    model = PrefillModel(kv_bytes_per_token=1, tokens_per_second=1_000)
    one_by_one = sum(
        (1 + position / 32_768) / 1_000 for hits in hits_by_request for position in range(hits * block_tokens)
    )
    blocks_before_hits = sum(before for hits in hits_by_request for before in range(hits))
    saved = model.saved_seconds(sum(hits_by_request), blocks_before_hits, block_tokens)
    assert saved == pytest.approx(one_by_one)


def test_a_late_token_costs_more_than_an_early_one() -> None:
    model = PrefillModel(kv_bytes_per_token=1, tokens_per_second=1_000)
    assert model.saved_seconds(1, 64, 512) == pytest.approx(2 * model.saved_seconds(1, 0, 512), rel=0.01)
