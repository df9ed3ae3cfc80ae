"""CUDA tensors become regions that another process can open: through ctypes, with a driver that has no device."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kernels.copies import ChunkCopy
from kernels.cuda.runtime import canonical_uuid
from kernels.geometry import CudaIpc, Group, Plane, PlaneKind, Region
from kvdepot import SharedRegions
from kvdepot.layout import layouts
from kvdepot.memory import cuda
from kvdepot.memory.cuda import CudaRegions, CudaUnavailable, NotShareable, ready_event
from kvdepot.v1 import cache_pb2
from tests.gpu.simulated.in_process import CardInProcess, card_in_process
from tests.kernels.cuda.depot import SECONDS, CudaDepot

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")


class Device:
    """A torch device of CUDA."""

    type = "cuda"

    def __init__(self, index: int = 0) -> None:
        self.index = index


class OnDevice:
    """A torch tensor, or its storage, that says it is on a CUDA device."""

    def __init__(self, tensor: Any, index: int = 0) -> None:
        self._tensor = tensor
        self.device = Device(index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def __len__(self) -> int:
        return len(self._tensor)


@dataclass(frozen=True)
class Event:
    """As torch has it; ``cuda_event`` is 0 before it was recorded."""

    cuda_event: int
    device: Any


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CardInProcess]:
    with card_in_process(tmp_path) as card:
        monkeypatch.setattr(cuda, "_LIBRARY", str(card.path))
        card.library.cuInit(0)  # as torch has done when it has tensors on a device
        yield card


def part(memory: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """Return a tensor with a storage of its own that is a part of some memory, as torch's allocator makes them."""
    return torch.from_numpy(memory.numpy()[start:end])


def allocation_of(region: cache_pb2.MemoryRegion) -> tuple[int, int]:
    """Return the address and the size of a handle's allocation."""
    start, size_bytes = np.frombuffer(region.cuda_ipc.handle, dtype=np.uint64)[:2].tolist()
    return start, size_bytes


def region_of(message: cache_pb2.MemoryRegion) -> Region:
    ipc = message.cuda_ipc
    return Region(message.size_bytes, CudaIpc(ipc.handle, ipc.offset_bytes, ipc.device_uuid))


def group_of(message: cache_pb2.KvGroup) -> Group:
    facts = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    planes = [
        Plane(layer=plane.layer, kind=PlaneKind(plane.kind), region=plane.region, offset_bytes=plane.offset_bytes)
        for plane in message.planes
    ]
    return Group(**(facts | {"planes": tuple(planes)}))


def test_a_region_is_where_the_storage_is_in_its_allocation(driver: CardInProcess) -> None:
    memory = driver.allocate(4096)
    tensor = OnDevice(part(memory, 512, 2560))
    shared = CudaRegions()
    assert shared.locate(tensor) == (0, 0)
    (region,) = shared.regions
    assert (region.size_bytes, region.cuda_ipc.offset_bytes) == (2048, 512)
    assert allocation_of(region) == (memory.data_ptr(), 4096)
    assert len(region.cuda_ipc.handle) == 64
    assert region.cuda_ipc.device_uuid == "GPU-a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0"


def test_tensors_in_one_storage_are_one_region(driver: CardInProcess) -> None:
    storage = part(driver.allocate(4096), 256, 4096)
    shared = CudaRegions()
    assert [shared.locate(OnDevice(view)) for view in (storage[1000:], storage[:10], storage[3000:].view(8, -1))] == [
        (0, 1000),
        (0, 0),
        (0, 3000),
    ]
    assert len(shared.regions) == 1


def test_storages_in_one_allocation_share_its_handle(driver: CardInProcess) -> None:
    memory, other = driver.allocate(4096), driver.allocate(1024)
    shared = CudaRegions()
    places = [
        shared.locate(OnDevice(part(*at))) for at in ((memory, 0, 1024), (other, 512, 1024), (memory, 1024, 4096))
    ]
    assert places == [(0, 0), (1, 0), (2, 0)]
    first, elsewhere, second = shared.regions
    assert first.cuda_ipc.handle == second.cuda_ipc.handle != elsewhere.cuda_ipc.handle
    assert driver.library.card_num_exports() == 2
    assert [region.cuda_ipc.offset_bytes for region in shared.regions] == [0, 512, 1024]
    for region, allocation in ((first, memory), (elsewhere, other), (second, memory)):
        assert allocation_of(region) == (allocation.data_ptr(), allocation.numel())
        assert region.cuda_ipc.offset_bytes + region.size_bytes <= allocation.numel()


def test_the_device_is_the_tensors_own(driver: CardInProcess) -> None:
    shared = CudaRegions()
    shared.locate(OnDevice(driver.allocate(64), index=1))
    assert shared.regions[0].cuda_ipc.device_uuid == "GPU-a1a1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a1"


def test_a_thread_that_never_used_the_device_can_share(driver: CardInProcess) -> None:
    shared, tensor = CudaRegions(), OnDevice(driver.allocate(64))
    thread = threading.Thread(target=shared.locate, args=(tensor,))
    thread.start()
    thread.join()
    assert len(shared.regions) == 1


def test_storages_stay_where_they_are_while_they_are_shared(driver: CardInProcess) -> None:
    array = driver.allocate(64).numpy()
    shared, memory = CudaRegions(), weakref.ref(array)
    shared.locate(OnDevice(torch.from_numpy(array)))
    del array
    gc.collect()
    assert memory() is not None
    del shared
    gc.collect()
    assert memory() is None


def test_a_depot_finds_the_bytes_of_every_tensor(driver: CardInProcess) -> None:
    layers, blocks, tokens, heads, size = 3, 6, 4, 2, 8
    allocations = [driver.allocate(4096) for _ in range(2)]
    storages = [part(memory, start, 4096) for memory, start in zip(allocations, (256, 768), strict=True)]
    nbytes = 2 * blocks * tokens * heads * size
    tensors = [
        storage[at : at + nbytes].view(2, blocks, tokens, heads, size)
        for storage, at in zip((storages[0], storages[1], storages[0]), (0, 16, nbytes), strict=True)
    ]
    shared = CudaRegions()
    group = layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors([OnDevice(tensor) for tensor in tensors], shared)
    depot = CudaDepot(has_threads=True)
    for region, memory in zip(shared.regions, allocations, strict=True):
        depot.fake.export_memory(memory.numpy(), region.cuda_ipc.handle)
        depot.fake.devices = {canonical_uuid(region.cuda_ipc.device_uuid): depot.fake}
    regions = [region_of(region) for region in shared.regions]
    buffer = depot.backend.attach([group_of(group)], regions, 2 * tokens)
    buffer.store([ChunkCopy(l1_offset_bytes=0, block_ids=(np.array([5, 2]),))]).future.result(SECONDS)
    expected = b"".join(tensor[kind, [5, 2]].numpy().tobytes() for tensor in tensors for kind in (0, 1))
    assert depot.l1[: len(expected)] == expected
    assert len(expected) == buffer.chunk_bytes == layers * 2 * 2 * tokens * heads * size
    depot.backend.close()
    assert depot.fake.faults == []


def test_expandable_segments_are_refused_with_the_setting_that_helps(driver: CardInProcess) -> None:
    tensor = OnDevice(driver.allocate(4096, is_mapped_piecewise=True))
    shared = CudaRegions()
    with pytest.raises(NotShareable, match=r"expandable_segments:False.*cuIpcGetMemHandle: CUDA_ERROR_INVALID_VALUE"):
        shared.locate(tensor)
    assert shared.regions == ()


def test_a_tensor_elsewhere_is_refused(driver: CardInProcess) -> None:
    for tensor in (torch.zeros(4), np.zeros(4)):
        with pytest.raises(ValueError, match="CUDA device"):
            CudaRegions().locate(tensor)
    with pytest.raises(ValueError, match="CudaRegions"):
        SharedRegions().locate(OnDevice(driver.allocate(64)))


def test_a_missing_driver_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_LIBRARY", "libcuda-absent.so.1")
    with pytest.raises(CudaUnavailable, match=r"no CUDA driver: .*libcuda-absent"):
        CudaRegions().locate(OnDevice(torch.zeros(4)))
    with pytest.raises(CudaUnavailable, match="no CUDA driver"):
        ready_event(Event(1, Device()))


def test_a_device_that_died_is_not_taken_for_memory_of_the_wrong_kind(driver: CardInProcess) -> None:
    tensor = OnDevice(driver.allocate(64))
    event = driver.event(interprocess=True)
    driver.library.card_fail(700)
    with pytest.raises(CudaUnavailable, match="cuPointerGetAttribute: CUDA_ERROR_ILLEGAL_ADDRESS"):
        CudaRegions().locate(tensor)
    with pytest.raises(CudaUnavailable, match="cuIpcGetEventHandle: CUDA_ERROR_ILLEGAL_ADDRESS"):
        ready_event(Event(event, Device()))


def test_an_event_is_its_handle(driver: CardInProcess) -> None:
    event, handle = driver.event(interprocess=True), (ctypes.c_ubyte * 64)()
    with driver.device_in_use():
        assert driver.library.cuIpcGetEventHandle(handle, ctypes.c_uint64(event)) == 0
    assert ready_event(Event(event, Device(1))) == bytes(handle)


def test_an_event_of_this_process_alone_is_refused(driver: CardInProcess) -> None:
    event = driver.event(interprocess=False)
    with pytest.raises(NotShareable, match="interprocess=True"):
        ready_event(Event(event, Device()))


def test_an_event_that_was_never_recorded_is_refused(driver: CardInProcess) -> None:
    with pytest.raises(NotShareable, match="never recorded"):
        ready_event(Event(0, None))
