"""Prompts of embeddings: chunks whose vLLM hashes may stand for other KV are neither loaded nor stored."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdepot.vllm.embeddings import named_tokens
from tests.fakes.vllm import CHUNK, TABLE, Request, SchedulerDriver, embeddings_of, request_of


@dataclass(frozen=True)
class Position:
    """One position of a prompt: a token, or an embedding, which is zeros or is not."""

    is_token: bool
    value: int

    @property
    def hashed(self) -> tuple[int, int]:
        """The token id and the embedding, as vLLM hashes them."""
        return (self.value, 0) if self.is_token else (0, self.value)


positions = st.builds(Position, st.booleans(), st.integers(0, 2))
prompts = st.lists(positions, min_size=1, max_size=8)


def request(prompt: list[Position], *, is_mixed: bool = True) -> Request:
    # The first value of some embeddings is zero, though they are not zeros.
    embeddings = np.array([[value // 2, value, 0] for value in (each.hashed[1] for each in prompt)], np.float32)
    if not is_mixed:
        return Request(prompt_embeds=embeddings)
    return Request(
        prompt_embeds=embeddings,
        prompt_token_ids=[position.value if position.is_token else 7 for position in prompt],
        prompt_is_token_ids=[position.is_token for position in prompt],
    )


@given(prompts, prompts, st.booleans())
def test_named_positions_of_equal_hashes_are_equal(one: list[Position], other: list[Position], copy: bool) -> None:
    if copy:  # so that hashes are equal, and zeros and the token 0 change places
        other = [Position(not each.is_token, 0) if each.value == 0 else each for each in one]
    ends = [named_tokens(request(prompt)) for prompt in (one, other)]
    named = min(len(one) if ends[0] is None else ends[0], len(other) if ends[1] is None else ends[1])
    for count in range(named + 1):
        if [each.hashed for each in one[:count]] == [each.hashed for each in other[:count]]:
            assert one[:count] == other[:count]


@given(prompts)
def test_all_positions_are_named_without_the_token_0_and_embeddings_of_zeros(prompt: list[Position]) -> None:
    expected = next((index for index, each in enumerate(prompt) if each.value == 0), None)
    assert named_tokens(request(prompt)) == expected


@pytest.mark.parametrize(("value", "expected"), [(1, None), (0, 2)])
def test_a_prompt_of_embeddings_alone_has_no_tokens(value: int, expected: int | None) -> None:
    prompt = [Position(False, each) for each in (1, 2, value, 1)]
    assert named_tokens(request(prompt, is_mixed=False)) == expected


def test_tokens_count_if_nothing_says_which_of_both_does() -> None:
    both = Request(prompt_embeds=embeddings_of(4), prompt_token_ids=[1, 2, 0, 3])
    assert named_tokens(both) == 2


def test_a_prompt_without_embeddings_is_named() -> None:
    assert named_tokens(Request(prompt_token_ids=[0, 0])) is None


def doubtful(position: int, **fields: Any) -> Request:
    """Return a request of 30 embeddings, one of which is zeros."""
    embeddings = embeddings_of(30)
    embeddings[position] = 0
    return request_of(30, prompt_embeds=embeddings, **fields)


@pytest.mark.parametrize("position", [0, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_no_chunk_that_has_a_doubtful_position_is_loaded(position: int) -> None:
    driver = SchedulerDriver()
    expected = position // CHUNK * CHUNK
    asked = doubtful(position)
    first = driver.scheduler.matched_tokens(asked, 0)
    if expected == 0:
        assert first == 0
        assert not driver.lookup_client.calls
        return
    driver.lookup_client.answer(24)  # the depot has all of it, of some other prompt
    assert driver.scheduler.matched_tokens(asked, 0) == expected
    driver.scheduler.allocated(asked, TABLE, expected)
    (load,) = driver.step({}).loads
    assert load.num_tokens == expected


@pytest.mark.parametrize("position", [0, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_no_chunk_that_has_a_doubtful_position_is_stored(position: int) -> None:
    driver = SchedulerDriver()
    driver.tables["request"] = TABLE
    asked, expected = doubtful(position), position // CHUNK * CHUNK
    stores = [*driver.step({asked: 20}).stores, *driver.step({asked: 10}).stores]
    assert [len(store.chunk_hashes) * store.chunk_size for store in stores] == ([expected] if expected else [])


def test_a_limit_of_the_request_holds_too() -> None:
    for position, limit in itertools.permutations((CHUNK + 1, 2 * CHUNK + 1)):
        driver = SchedulerDriver()
        driver.tables["request"] = TABLE
        params = {"kvdepot.max_store_tokens": limit, "kvdepot.max_load_tokens": limit}
        asked = doubtful(position, kv_transfer_params=params)
        driver.scheduler.matched_tokens(asked, 0)
        driver.lookup_client.answer(24)
        assert driver.scheduler.matched_tokens(asked, 0) == CHUNK
        other = doubtful(position, kv_transfer_params={**params, "kvdepot.load": False}, request_id="other")
        driver.tables["other"] = TABLE
        (store,) = driver.step({other: 30}).stores
        assert len(store.chunk_hashes) * store.chunk_size == CHUNK
