"""The index knows of each prompt what its depot holds, in whatever order the depot told."""

from __future__ import annotations

from itertools import product, takewhile

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.router.events import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, Event
from examples.router.index import DepotIndex, Match, Prompt

SIZE = 2
PROMPTS = list(product((1, 2), repeat=3))
MEDIA = ("CPU_PINNED", "DISK")


def tokens_of(prompt: tuple[int, ...]) -> list[int]:
    return [token for block in prompt for token in (block, 0)]


def hash_of(prompt: tuple[int, ...]) -> int:
    """Return what the depot calls the last block of a prompt."""
    return int("".join(map(str, prompt)))


def stored(*prompts: tuple[int, ...], medium: str | None = "CPU_PINNED", **fields: object) -> BlockStored:
    """Return the event for the last block of each prompt; each prompt goes on where the one before ends."""
    before = prompts[0][:-1]
    event = BlockStored(
        block_hashes=[hash_of(prompt) for prompt in prompts],
        parent_block_hash=hash_of(before) if before else None,
        token_ids=[token for prompt in prompts for token in tokens_of(prompt[-1:])],
        block_size=SIZE,
        medium=medium,
    )
    return msgspec.structs.replace(event, **fields)


def removed(prompt: tuple[int, ...], medium: str | None = "CPU_PINNED") -> BlockRemoved:
    return BlockRemoved(block_hashes=[hash_of(prompt)], medium=medium)


def index_of(*events: Event) -> DepotIndex:
    index = DepotIndex()
    for event in events:
        index.apply(event)
    return index


def match(index: DepotIndex, prompt: tuple[int, ...], adapter: str | None = None) -> Match:
    return index.match(Prompt(tokens_of(prompt), adapter))


blocks = st.sampled_from(sorted({prompt[:length] for prompt in PROMPTS for length in (1, 2, 3)}))
events = st.one_of(
    st.builds(lambda block, medium: stored(block, medium=medium), blocks, st.sampled_from(MEDIA)),
    st.builds(removed, blocks, st.sampled_from(MEDIA)),
)


@given(st.lists(events, min_size=20, max_size=80))
def test_what_is_found_is_what_was_told_in_any_order(told: list[Event]) -> None:
    held: dict[BlockHash, set[str]] = {}
    for event in told:
        match event:
            case BlockStored():
                held.setdefault(event.block_hashes[0], set()).add(str(event.medium))
            case BlockRemoved():
                held.get(event.block_hashes[0], set()).discard(str(event.medium))
    index = index_of(*told)
    for prompt in PROMPTS:
        media = [held.get(hash_of(prompt[:length]), set()) for length in (1, 2, 3)]
        leading = list(takewhile(bool, media))
        value = sum(SIZE * (1.0 if "CPU_PINNED" in each else 0.5) for each in leading)
        assert match(index, prompt) == Match(SIZE * len(leading), value)


def test_nothing_is_held_after_all_is_cleared_and_it_can_come_again() -> None:
    index = index_of(stored((1,)), stored((2, 1)), AllBlocksCleared(), stored((2,)))
    assert match(index, (1,)) == Match()
    assert match(index, (2, 1)) == Match(2, 2.0)


def test_one_event_may_tell_several_blocks() -> None:
    index = index_of(stored((1,), (1, 2), (1, 2, 1)))
    assert match(index, (1, 2, 1)) == Match(6, 6.0)
    assert match(index, (1, 2, 2)) == Match(4, 4.0)
    assert match(index, (2, 2, 1)) == Match()


def test_a_short_last_block_is_not_asked_for() -> None:
    assert index_of(stored((1,), (1, 2))).match(Prompt([1, 0, 2])) == Match(2, 2.0)


def test_blocks_of_several_sizes_follow_each_other() -> None:
    longer = BlockStored(block_hashes=[9], parent_block_hash=1, token_ids=[2, 0, 1], block_size=3, medium="DISK")
    index = index_of(stored((1,)), longer)
    assert index.match(Prompt([1, 0, 2, 0, 1, 7])) == Match(5, 3.5)
    assert index.match(Prompt([1, 0, 2, 0, 2, 7])) == Match(2, 2.0)
    assert index.match(Prompt([1, 0])) == Match(2, 2.0)  # the rest is no block of three


def test_adapters_share_nothing() -> None:
    index = index_of(stored((1,)), stored((2,), lora_name="poems", extra_keys=[["poems"]]))
    assert match(index, (1,), adapter="poems").tokens == 0
    assert match(index, (2,)).tokens == 0
    assert match(index, (2,), adapter="poems").tokens == 2


@pytest.mark.parametrize(
    "event",
    [
        stored((1,), token_ids=[]),
        stored((1,), medium="TAPE"),
        stored((1,), group_idx=1),
        stored((1,), extra_keys=[["a picture"]]),
    ],
    ids=["no tokens", "an unknown medium", "another group", "more than text"],
)
def test_blocks_that_no_text_can_find_are_left_out(event: BlockStored) -> None:
    index = index_of(event)
    assert match(index, (1,)) == Match()
    assert len(index) == 0
    index.apply(stored((1, 2)))  # of an unknown prefix now
    assert match(index, (1, 2)) == Match()


def test_an_event_without_a_medium_is_about_the_gpu() -> None:
    index = index_of(stored((1,), medium=None), removed((1,), medium="GPU"))
    assert match(index, (1,)) == Match()


def test_a_shared_tier_continues_a_prefix_and_is_worth_nothing_to_the_choice() -> None:
    index = index_of(stored((1,)), stored((1, 2), medium="EXTERNAL"), stored((1, 2, 1)))
    assert match(index, (1, 2, 1)) == Match(6, 4.0)


def test_nothing_stays_of_blocks_of_an_unknown_prefix_that_left() -> None:
    index = index_of(stored((1, 2)), stored((1, 1)))
    assert repr(index) == "<DepotIndex 0 blocks, 2 of unknown prefix>"
    index.apply(removed((1, 2)))
    index.apply(removed((1, 1)))
    assert {name for name, kept in vars(index).items() if kept} == {"_block_sizes"}
