"""The driver's calls that CuPy lacks, through ctypes: one side opens the exports of the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.cuda import driver
from kernels.cuda.runtime import HANDLE_BYTES, Address, CudaError
from tests.gpu.simulated.in_process import CardInProcess, SmallOwner, card_in_process


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CardInProcess]:
    with card_in_process(tmp_path) as card:
        monkeypatch.setattr(driver, "_library", lambda: card.library)
        with card.device_in_use():  # as `CupyDevice.use` does
            yield card
            card.library.card_fail(0)


@pytest.fixture
def owner(card: CardInProcess) -> Iterator[SmallOwner]:
    owner = SmallOwner(card.path)
    yield owner
    owner.close()


def test_memory_is_found_with_its_size_until_it_is_closed(card: CardInProcess, owner: SmallOwner) -> None:
    in_use = card.library.card_left_over()
    address = driver.open_memory(owner.memory)
    assert driver.bytes_from(address) == 1 << 20
    assert driver.bytes_from(Address(address + 1000)) == (1 << 20) - 1000
    assert card.library.card_left_over() == in_use + 1
    driver.close_memory(address)
    assert card.library.card_left_over() == in_use


def test_an_event_is_found_until_it_is_destroyed(card: CardInProcess, owner: SmallOwner) -> None:
    in_use = card.library.card_left_over()
    event = driver.open_event(owner.event)
    assert card.library.card_left_over() == in_use + 1
    driver.destroy_event(event)
    assert card.library.card_left_over() == in_use
    with pytest.raises(CudaError, match="cuEventDestroy_v2: CUDA_ERROR_INVALID_HANDLE"):
        driver.destroy_event(event)


def test_a_refusal_names_the_call_and_the_error(card: CardInProcess) -> None:
    with pytest.raises(CudaError, match="cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_VALUE"):
        driver.open_memory(bytes(HANDLE_BYTES))
    with pytest.raises(CudaError, match="cuIpcOpenEventHandle: CUDA_ERROR_INVALID_HANDLE"):
        driver.open_event(bytes(HANDLE_BYTES))
    card.library.card_fail(720)
    with pytest.raises(CudaError, match="cuIpcCloseMemHandle: CUDA_ERROR_720"):
        driver.close_memory(Address(0))


def test_a_device_has_its_uuid(card: CardInProcess) -> None:
    assert driver.device_uuid(1) == "a1a1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a1"
    with pytest.raises(CudaError, match="cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"):
        driver.device_uuid(2)
