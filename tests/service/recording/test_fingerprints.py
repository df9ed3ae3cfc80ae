"""Fingerprints are equal exactly where prefixes are, and differ from process to process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from service.l1.keys import Namespace, Prefix
from service.recording.fingerprints import Fingerprints

BLOCK_TOKENS = 4
FINGERPRINTS = Fingerprints()
NAMESPACE, OTHER_NAMESPACE = Namespace(b"n" * 32), Namespace(b"o" * 32)
TOKENS = st.lists(st.sampled_from([0, 1, 2, 2**32 - 1]) | st.integers(0, 2**32 - 1), max_size=14)


def prefix(tokens: Sequence[int]) -> Prefix:
    return Prefix(token_ids=np.array(tokens, dtype=np.uint32))


def all_of(tokens: Sequence[int], namespace: Namespace = NAMESPACE, *, step: int = 100) -> list[int]:
    """Return those of all blocks, and of the rest if there is one. `step` blocks are done at a time."""
    given = prefix(tokens)
    num_blocks = len(tokens) // BLOCK_TOKENS
    found: list[int] = []
    for first in range(0, num_blocks, step):
        blocks = range(first, min(num_blocks, first + step))
        found += FINGERPRINTS.of_blocks(namespace, found[-1] if found else 0, given, blocks, BLOCK_TOKENS)
    if len(tokens) % BLOCK_TOKENS:
        found.append(FINGERPRINTS.of_rest(namespace, found[-1] if found else 0, given, num_blocks, BLOCK_TOKENS))
    return found


@given(TOKENS, TOKENS)
@example([1], [1, 0])  # a rest that ends with the token 0
@example([0, 0, 0], [0, 0, 0, 0])  # a rest, and a block
@example([1, 0, 0, 0, 2, 0, 0, 0], [2, 0, 0, 0, 1, 0, 0, 0])  # the same blocks in another order
@example([0, 0, 0, 0], [2**32 - 1, 0, 0, 0])
def test_two_prompts_share_fingerprints_exactly_as_far_as_they_share_tokens(
    first: list[int], second: list[int]
) -> None:
    ends = [min(end + BLOCK_TOKENS, len(first)) for end in range(0, len(first), BLOCK_TOKENS)]
    others = [min(end + BLOCK_TOKENS, len(second)) for end in range(0, len(second), BLOCK_TOKENS)]
    for end, one in zip(ends, all_of(first), strict=True):
        for other_end, other in zip(others, all_of(second), strict=True):
            assert (one == other) == (first[:end] == second[:other_end])


@given(TOKENS, st.integers(1, 3))
def test_they_are_the_same_in_steps(tokens: list[int], step: int) -> None:
    assert all_of(tokens, step=step) == all_of(tokens)


@given(TOKENS.filter(bool))
def test_another_namespace_and_another_process_have_others(tokens: list[int]) -> None:
    assert not {*all_of(tokens)} & {*all_of(tokens, OTHER_NAMESPACE)}
    if len(tokens) >= BLOCK_TOKENS:
        blocks = range(len(tokens) // BLOCK_TOKENS)
        elsewhere = Fingerprints().of_blocks(NAMESPACE, 0, prefix(tokens), blocks, BLOCK_TOKENS)
        assert not {*all_of(tokens)} & {*elsewhere}


def test_random_blocks_do_not_collide() -> None:
    tokens = np.random.default_rng(1).integers(0, 3, 4 * 200_000, dtype=np.uint32)
    found = FINGERPRINTS.of_blocks(NAMESPACE, 0, Prefix(token_ids=tokens), range(200_000), BLOCK_TOKENS)
    assert len(set(found)) == 200_000
    assert max(found) < 1 << 64
