"""The driver's calls that CuPy lacks, through ctypes: what one side exports, the other side opens."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.cuda import driver
from kernels.cuda.runtime import HANDLE_BYTES, Address, CudaError
from tests.kernels.cuda.fake_libcuda import FakeLibcuda, fake_libcuda


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibcuda]:
    with fake_libcuda(tmp_path) as fake:
        monkeypatch.setattr(driver, "_library", lambda: fake.library)
        fake.library.fake_use(0)  # as `CupyDevice.use` does
        yield fake
        fake.library.fake_use(-1)


def exported(fake: FakeLibcuda, name: str, what: object) -> bytes:
    handle = (ctypes.c_ubyte * HANDLE_BYTES)()
    assert getattr(fake.library, name)(handle, what) == 0
    return bytes(handle)


def test_memory_is_found_with_its_size_until_it_is_closed(fake: FakeLibcuda) -> None:
    memory = fake.allocate(1 << 12)
    address = driver.open_memory(exported(fake, "cuIpcGetMemHandle", ctypes.c_uint64(memory.data_ptr())))
    assert address == memory.data_ptr()
    assert driver.bytes_from(address) == 1 << 12
    assert driver.bytes_from(Address(address + 1000)) == (1 << 12) - 1000
    assert fake.library.fake_left_over() == 2  # the memory, and the device in use
    driver.close_memory(address)
    assert fake.library.fake_left_over() == 1


def test_an_event_is_found_until_it_is_destroyed(fake: FakeLibcuda) -> None:
    fake.library.fake_event(5, 1)
    event = driver.open_event(exported(fake, "cuIpcGetEventHandle", ctypes.c_void_p(5)))
    assert event == 5
    driver.destroy_event(event)


def test_a_refusal_names_the_call_and_the_error(fake: FakeLibcuda) -> None:
    with pytest.raises(CudaError, match="cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_VALUE"):
        driver.open_memory(bytes(HANDLE_BYTES))
    with pytest.raises(CudaError, match="cuIpcOpenEventHandle: CUDA_ERROR_INVALID_HANDLE"):
        driver.open_event(bytes(HANDLE_BYTES))
    fake.library.fake_fail(719)
    with pytest.raises(CudaError, match="cuIpcCloseMemHandle: CUDA_ERROR_719"):
        driver.close_memory(Address(0))


def test_a_device_has_its_uuid(fake: FakeLibcuda) -> None:
    assert driver.device_uuid(1) == "a1a1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a1"
    with pytest.raises(CudaError, match="cuDeviceGet: CUDA_ERROR_101"):
        driver.device_uuid(2)
