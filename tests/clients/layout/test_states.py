"""States are described as they lie in memory, and what can't be stored whole is refused with its tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kvdepot import SharedBuffer, SharedRegions, layouts
from kvdepot.errors import InvalidArgument
from tests.fakes.paged import Bytes


@pytest.fixture
def states() -> Any:
    """Return a function that makes the states of two layers, `[blocks, bytes]`, in pages of 64 bytes."""
    with SharedBuffer.create(2 * 4 * 64) as buffer:
        shared = SharedRegions()
        shared.add(buffer)
        pages = buffer.array.reshape(2, 4, 64)
        yield lambda size: ([page[:, :size] for page in pages], shared)


States = Callable[[int], tuple[list[Bytes], SharedRegions]]


@pytest.mark.parametrize(("size", "part"), [(48, 12), (45, 12), (1, 1), (64, 16)])
def test_a_state_is_cut_into_as_many_parts_as_its_block_has_tokens(states: States, size: int, part: int) -> None:
    tensors, shared = states(size)
    group = layouts.states_from_tensors(tensors, shared, block_size=4)
    assert group.holds_state
    assert (group.num_layers, group.num_blocks, group.block_size) == (2, 4, 4)
    assert (group.head_bytes, group.token_stride_bytes, group.block_stride_bytes) == (part, part, 64)
    assert [plane.offset_bytes for plane in group.planes] == [0, 256]
    assert group.dtype == "uint8"


def test_elements_may_be_named_and_may_have_dimensions(states: States) -> None:
    tensors, shared = states(64)
    group = layouts.states_from_tensors(
        [tensor.view(np.uint16).reshape(4, 2, 16) for tensor in tensors], shared, block_size=8, dtype="bfloat16"
    )
    assert (group.dtype, group.head_bytes) == ("bfloat16", 8)


@pytest.mark.parametrize(
    ("change", "block_size", "message"),
    [
        (
            lambda tensors: tensors,
            3,
            r"tensors\[0\]: the 64 bytes of a state are no multiple of 3, and there is no room",
        ),
        (lambda tensors: [], 4, "there are no tensors"),
        (lambda tensors: tensors, 0, "block_size: must be an integer of at least 1, not 0"),
        (lambda tensors: [tensors[0], tensors[1][:, :32]], 4, r"tensors\[1\]: it differs from the first tensor"),
        (lambda tensors: [tensor[:, ::2] for tensor in tensors], 4, "the bytes of a state are not contiguous"),
        (lambda tensors: [tensor[:, 0] for tensor in tensors], 4, r"\[num_blocks, \.\.\.\] is expected"),
        (lambda tensors: ["no tensor"], 4, r"tensors\[0\]: neither a NumPy array nor a torch tensor"),
        (lambda tensors: [np.zeros((4, 64), np.uint8)], 4, r"tensors\[0\]"),
    ],
)
def test_states_that_can_not_be_described_are_refused(
    states: States, change: Callable[[Any], Any], block_size: int, message: str
) -> None:
    tensors, shared = states(64)
    with pytest.raises(InvalidArgument, match=message):
        layouts.states_from_tensors(change(tensors), shared, block_size=block_size)
