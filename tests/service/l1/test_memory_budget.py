"""The budget: memory that is set aside for one attach, or for L1, is not available to another."""

from __future__ import annotations

import errno

import pytest

from kvdepot.memory.available import MemoryLeft
from service.l1.memory_budget import KEPT_BYTES, MemoryBudget


class Machine:
    def __init__(self, left_bytes: int) -> None:
        self.left_bytes = left_bytes
        self.l1_missing_bytes = 0
        self.budget = MemoryBudget(lambda: self.l1_missing_bytes, self.left)

    def left(self) -> MemoryLeft:
        return MemoryLeft("the machine", 1 << 40, self.left_bytes)


def test_two_never_count_on_the_same_memory() -> None:
    budget = Machine(KEPT_BYTES + 1000).budget
    with budget.reserve(600):
        with pytest.raises(OSError, match="401 bytes of memory are needed, the machine has 400 bytes left") as raised:
            budget.reserve(401).__enter__()
        assert raised.value.errno == errno.ENOMEM
        with budget.reserve(400):
            pass
    with budget.reserve(1000):
        pass


def test_what_failed_is_given_back() -> None:
    budget = Machine(KEPT_BYTES + 1000).budget
    with pytest.raises(KeyError), budget.reserve(1000):
        raise KeyError
    with budget.reserve(1000):
        pass


def test_what_l1_will_take_is_not_left() -> None:
    machine = Machine(KEPT_BYTES + 1000)
    machine.l1_missing_bytes = 700
    with pytest.raises(OSError, match="has 300 bytes left"):
        machine.budget.reserve(301).__enter__()
    machine.left_bytes -= 700
    machine.l1_missing_bytes = 0
    with machine.budget.reserve(300):
        pass


def test_sizes_that_look_equal_are_told_in_bytes() -> None:
    budget = Machine(KEPT_BYTES + (8 << 30)).budget
    with pytest.raises(
        OSError, match="8,589,934,593 bytes of memory are needed, the machine has 8,589,934,592 bytes left"
    ):
        budget.reserve((8 << 30) + 1).__enter__()
    with pytest.raises(OSError, match=r"9\.0 GiB of memory are needed, the machine has 8\.0 GiB left"):
        budget.reserve(9 << 30).__enter__()


def test_less_than_nothing_is_nothing() -> None:
    with pytest.raises(OSError, match="has 0 bytes left"):
        Machine(5).budget.reserve(1).__enter__()
