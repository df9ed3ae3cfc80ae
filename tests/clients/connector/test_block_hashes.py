"""Hashes of whole blocks: each covers all tokens before its end, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdepot import InvalidArgument
from kvdepot.connector import BlockHashes

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def hashes_of(tokens: Any, block_size: int = 4) -> list[bytes]:
    hashes = BlockHashes(block_size)
    hashes.update(tokens)
    return hashes.values


@given(tokens=TOKENS, block_size=st.integers(1, 9))
def test_each_whole_block_has_one_hash(tokens: list[int], block_size: int) -> None:
    found = hashes_of(tokens, block_size)
    assert len(found) == len(tokens) // block_size
    assert all(len(each) == 32 for each in found)


@given(tokens=TOKENS.filter(bool), data=st.data())
def test_one_other_token_changes_the_hashes_from_its_block_on_and_no_earlier_one(
    tokens: list[int], data: st.DataObject
) -> None:
    changed = data.draw(st.integers(0, len(tokens) - 1))
    others = [*tokens]
    others[changed] ^= 1 << data.draw(st.integers(0, 31))
    equal = [one == two for one, two in zip(hashes_of(tokens), hashes_of(others), strict=True)]
    assert equal == [number < changed // 4 for number in range(len(equal))]


@given(tokens=TOKENS, cuts=st.lists(st.integers(0, 40)))
def test_tokens_that_come_one_after_another_have_the_hashes_of_all_at_once(tokens: list[int], cuts: list[int]) -> None:
    hashes = BlockHashes(4)
    for cut in [*sorted(cuts), len(tokens)]:
        hashes.update(tokens[:cut])
    assert hashes.values == hashes_of(tokens)


@given(tokens=TOKENS)
def test_engines_with_other_block_sizes_have_the_same_hashes_at_the_same_tokens(tokens: list[int]) -> None:
    assert hashes_of(tokens, 6) == hashes_of(tokens, 2)[2::3]


def test_arrays_and_lists_have_the_same_hashes() -> None:
    tokens = list(range(20))
    assert hashes_of(np.array(tokens, np.int64)) == hashes_of(tuple(tokens)) == hashes_of(tokens)


@pytest.mark.parametrize("wrong", [-1, 2**32, 1.5, "a", None])
def test_what_is_no_token_id_is_refused_and_adds_no_hash(wrong: Any) -> None:
    hashes = BlockHashes(4)
    hashes.update([1, 2, 3, 4])
    with pytest.raises(InvalidArgument, match="token_ids"):
        hashes.update([1, 2, 3, 4, 5, 6, wrong, 8])
    hashes.update([1, 2, 3, 4, 5, 6, 7, 8])
    assert hashes.values == hashes_of([1, 2, 3, 4, 5, 6, 7, 8])


def test_the_hashes_of_a_prompt_are_those_of_earlier_versions() -> None:
    """Chunks outlive engines. Other hashes need another `BLOCK_HASH_SEED`."""
    assert [each.hex() for each in hashes_of([1, 2, 3, 2**32 - 1, 7])] == [
        "cc62318078f6ef39600636cbb1192370b1ed4b0366ffae1c66a410a7880e811a"
    ]


def test_a_block_size_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size is 0"):
        BlockHashes(0)
