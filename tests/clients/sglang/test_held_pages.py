"""Pages that the depot may still touch are not given to anyone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdepot.sglang.held_pages import HeldPages

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

PAGE = 4
NUM_PAGES = 6


class Pool:
    """A host pool: what is free, and what is taken."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.free_indices = list(range(PAGE * NUM_PAGES))

    def available_size(self) -> int:
        return len(self.free_indices)

    def alloc(self, size: int) -> Any:
        taken, self.free_indices = self.free_indices[:size], self.free_indices[size:]
        return torch.tensor(taken)

    def free(self, indices: Any) -> int:
        assert not set(indices.tolist()) & set(self.free_indices), "freed twice"
        self.free_indices += indices.tolist()
        return len(indices)


def test_pages_of_an_uncertain_transfer_come_back_when_it_is_certain() -> None:
    pool, held = Pool(), HeldPages()
    held.watch(pool)
    taken = pool.alloc(PAGE * NUM_PAGES)
    held.hold(1, PAGE, [1, 4])
    assert pool.free(taken) == PAGE * NUM_PAGES
    assert {index // PAGE for index in pool.free_indices} == {0, 2, 3, 5}
    assert held.num_kept == 2 * PAGE
    held.release([1])
    assert pool.available_size() == PAGE * NUM_PAGES
    assert held.num_kept == 0


def test_a_page_of_two_transfers_waits_for_both() -> None:
    pool, held = Pool(), HeldPages()
    held.watch(pool)
    taken = pool.alloc(PAGE)
    held.hold(1, PAGE, [0])
    held.hold(2, PAGE, [0])
    pool.free(taken)
    held.release([1])
    assert held.num_kept == PAGE
    held.release([2])
    assert pool.available_size() == PAGE * NUM_PAGES


def test_a_cleared_pool_gives_held_pages_to_no_one() -> None:
    pool, held = Pool(), HeldPages()
    held.watch(pool)
    pool.free(pool.alloc(PAGE))
    held.hold(1, PAGE, [0, 3])
    pool.free(pool.alloc(PAGE * NUM_PAGES))
    pool.clear()
    assert {index // PAGE for index in pool.free_indices} == {1, 2, 4, 5}
    held.release([1])
    assert sorted(pool.free_indices) == list(range(PAGE * NUM_PAGES))


def test_a_pool_has_its_own_methods_again_when_nothing_is_held() -> None:
    pool, held = Pool(), HeldPages()
    own = (pool.free, pool.clear)
    held.watch(pool)
    held.hold(1, PAGE, [0])
    assert not held.close()
    assert (pool.free, pool.clear) != own
    held.release([1])
    assert held.close()
    assert (pool.free, pool.clear) == own


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 3)),
        st.tuples(st.just("free"), st.integers(0, 5)),
        st.tuples(st.just("hold"), st.integers(0, 5)),
        st.tuples(st.just("release"), st.integers(0, 5)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=30,
)


@given(STEPS)
def test_a_held_page_is_never_free_and_no_page_is_lost(steps: list[tuple[str, int]]) -> None:
    pool, held = Pool(), HeldPages()
    held.watch(pool)
    taken: list[Any] = []
    holds: dict[int, int] = {}
    for number, (step, value) in enumerate(steps):
        match step:
            case "take" if pool.available_size() >= value * PAGE:
                taken.append(pool.alloc(value * PAGE))
            case "free" if value < len(taken):
                pool.free(taken.pop(value))
            case "hold" if taken:  # a transfer moves pages that are taken
                page = int(taken[value % len(taken)][0]) // PAGE
                holds[number] = page
                held.hold(number, PAGE, [page])
            case "release" if holds:
                oldest = min(holds)
                del holds[oldest]
                held.release([oldest])
            case "clear":
                taken.clear()
                pool.clear()
        assert not {index // PAGE for index in pool.free_indices} & set(holds.values())
    held.release(list(holds))
    for each in taken:
        pool.free(each)
    assert sorted(pool.free_indices) == list(range(PAGE * NUM_PAGES))
