"""L1 on CUDA: each part is registered once, and no copy crosses two parts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernels.cuda.pinned_l1 import PinnedL1
from kernels.cuda.runtime import CudaError
from kernels.errors import BackendError
from tests.kernels.cuda.depot import SECONDS, CudaDepot
from tests.kernels.cuda.fake_cuda import FakeCuda


def pinned(size_bytes: int, piece_bytes: int) -> tuple[FakeCuda, PinnedL1]:
    fake = FakeCuda()
    return fake, PinnedL1(fake, memoryview(bytearray(size_bytes)), piece_bytes)


def test_a_range_registers_the_pieces_that_it_touches() -> None:
    fake, l1 = pinned(1_000, 100)
    l1.register(150, 100)
    assert fake.calls.count("register") == 2
    l1.register(199, 1)
    l1.register(100, 200)
    assert fake.calls.count("register") == 2
    l1.register(0, 301)
    assert fake.calls.count("register") == 4


def test_the_last_piece_ends_where_the_memory_does() -> None:
    fake, l1 = pinned(250, 100)
    l1.register(0, 250)
    ends = sorted(memory.end - int(l1.address(0)) for memory in fake._memory.all)
    assert ends == [100, 200, 250]


def test_a_range_is_cut_where_pieces_end() -> None:
    _, l1 = pinned(1_000, 100)
    assert list(l1.cut(150, 300)) == [(150, 50), (200, 100), (300, 100), (400, 50)]
    assert list(l1.cut(100, 100)) == [(100, 100)]


def test_two_threads_register_a_piece_once() -> None:
    fake, l1 = pinned(100, 100)
    register, both = fake.register, threading.Barrier(2)

    def slow(address: int, size_bytes: int) -> None:
        threading.Event().wait(0.05)  # long enough for the other thread to get to the lock
        register(address, size_bytes)  # type: ignore[arg-type]

    def start(_: int) -> None:
        both.wait(SECONDS)
        l1.register(0, 100)

    fake.register = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(start, range(2)))
    assert fake.calls.count("register") == 1


def test_closing_undoes_all_registrations_even_if_one_cannot_be() -> None:
    fake, l1 = pinned(1_000, 100)
    l1.register(0, 1_000)
    fake.calls.clear()
    fake.fail_call = 3
    with pytest.raises(CudaError):
        l1.close()
    assert fake.calls == ["free registered memory"] * 10
    l1.register(0, 1_000)
    assert fake.left_over() == []


def test_what_cannot_be_pinned_is_said_to_be() -> None:
    depot = CudaDepot()
    depot.fake.fail_call = 2
    with pytest.raises(BackendError, match="L1 can't be registered"):
        depot.backend.register(0, 9_000)
    depot.backend.register(0, 9_000)
    depot.backend.close()
    assert depot.fake.left_over() == []
