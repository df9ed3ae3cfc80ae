"""Memory of other processes: mapped once per device, and unmapped with its last user."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kernels.cuda.ipc import ImportedMemory
from kernels.cuda.runtime import Address, CudaError
from tests.kernels.cuda.depot import SECONDS
from tests.kernels.cuda.fake_cuda import FakeCuda


@pytest.fixture
def fake() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def handle(fake: FakeCuda) -> bytes:
    return fake.export_memory(np.zeros(256, dtype=np.uint8))


def test_a_handle_is_open_once_until_its_last_user_closes_it(fake: FakeCuda, handle: bytes) -> None:
    imported = ImportedMemory()
    first, second = (imported.open(fake, handle) for _ in range(2))
    assert first == second
    imported.close(fake, handle)
    assert (fake.calls, len(imported)) == (["open_memory"], 1)
    imported.close(fake, handle)
    assert (fake.calls, len(imported)) == (["open_memory", "free imported memory"], 0)


def test_each_device_has_its_own_mapping(fake: FakeCuda, handle: bytes) -> None:
    imported, other, memory = ImportedMemory(), FakeCuda(), np.zeros(256, dtype=np.uint8)
    other.uuid = "another"
    other.export_memory(memory, handle)
    assert imported.open(fake, handle) != imported.open(other, handle) == memory.ctypes.data
    imported.close(fake, handle)
    assert (fake.left_over(), other.left_over()) == ([], ["imported memory"])
    imported.close(other, handle)
    assert other.left_over() == []


def test_two_threads_open_a_handle_once(fake: FakeCuda, handle: bytes) -> None:
    imported, open_memory, both = ImportedMemory(), fake.open_memory, threading.Barrier(2)

    def slow(handle: bytes) -> Address:
        threading.Event().wait(0.05)  # long enough for the other thread to get to the lock
        return open_memory(handle)

    def start(_: int) -> Address:
        both.wait(SECONDS)
        return imported.open(fake, handle)

    fake.open_memory = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(start, range(2))
    assert first == second
    assert (fake.calls, fake.faults) == (["open_memory"], [])


def test_memory_that_could_not_be_unmapped_is_opened_anew(fake: FakeCuda, handle: bytes) -> None:
    imported = ImportedMemory()
    imported.open(fake, handle)
    fake.fail_call = 1
    with pytest.raises(CudaError):
        imported.close(fake, handle)
    assert len(imported) == 0
    imported.open(fake, handle)
    imported.close(fake, handle)
    assert fake.left_over() == []


def test_a_handle_that_cannot_be_opened_has_no_users(fake: FakeCuda, handle: bytes) -> None:
    imported = ImportedMemory()
    fake.fail_call = 1
    with pytest.raises(CudaError):
        imported.open(fake, handle)
    assert len(imported) == 0
    imported.open(fake, handle)
    imported.close(fake, handle)
    assert fake.left_over() == []
