"""Memory of another process: its size, its owner, and its release when the owner is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kernels.copies import ChunkCopy
from kernels.cuda.backend import CudaBackend
from kernels.cuda.cupy_runtime import CupyRuntime
from kernels.cuda.runtime import CudaError, canonical_uuid
from kernels.errors import RegionError, TransferCancelled
from kernels.geometry import CudaIpc, Group, Plane, PlaneKind, Region
from tests.gpu.conftest import OpenBackend
from tests.gpu.engine_process import EngineProcess

pytestmark = pytest.mark.gpu

GIB = 1 << 30
SECONDS = 60


def latent_group(size_bytes: int, block_bytes: int = 1 << 20) -> Group:
    """Return one plane over all of a region, in blocks of one token."""
    return Group(
        num_layers=1,
        num_blocks=size_bytes // block_bytes,
        block_size=1,
        num_heads=1,
        head_bytes=block_bytes,
        dtype="uint8",
        block_stride_bytes=block_bytes,
        token_stride_bytes=0,
        head_stride_bytes=0,
        planes=(Plane(layer=0, kind=PlaneKind.LATENT, region=0, offset_bytes=0),),
    )


def free_bytes() -> int:
    import cupy

    return int(cupy.cuda.runtime.memGetInfo()[0])


@pytest.fixture
def mortal() -> Iterator[EngineProcess]:
    """An engine that a test may kill."""
    engine = EngineProcess()
    yield engine
    engine.close()


def attach(backend: CudaBackend, region: Region) -> Any:
    return backend.attach([latent_group(region.size_bytes)], [region], 1)


def test_a_killed_engine_is_detached_and_its_memory_free_within_a_second(
    open_backend: OpenBackend, mortal: EngineProcess, engine: EngineProcess
) -> None:
    backend = open_backend(staging_bytes=1 << 20)
    other = attach(backend, engine.region("make", size_bytes=8 << 20))
    region = mortal.region("make", size_bytes=2 * GIB)
    buffer = attach(backend, region)
    copies = [ChunkCopy(l1_offset_bytes=n << 20, block_ids=(np.array([n]),)) for n in range(8)]
    buffer.store(copies).future.result(SECONDS)
    before = free_bytes()
    mortal.kill()
    begin = time.monotonic()
    buffer.close()
    while free_bytes() < before + 2 * GIB and time.monotonic() < begin + SECONDS:
        time.sleep(0.01)
    assert time.monotonic() - begin < 1
    other.store(copies).future.result(SECONDS)
    other.retrieve(copies).future.result(SECONDS)


@pytest.mark.parametrize("l1_bytes", [64 << 20], ids=["64-MiB"])
def test_an_engine_killed_while_its_blocks_are_moved_does_not_hold_its_memory(
    open_backend: OpenBackend, mortal: EngineProcess
) -> None:
    backend = open_backend()
    backend.register(0, 64 << 20)
    buffer = attach(backend, mortal.region("make", size_bytes=2 * GIB))
    before = free_bytes()
    copies = [ChunkCopy(l1_offset_bytes=n << 20, block_ids=(np.array([31 * n]),)) for n in range(64)]
    transfers = [start(copies) for _ in range(200) for start in (buffer.store, buffer.retrieve)]
    transfers[0].future.result(SECONDS)
    mortal.kill()
    begin = time.monotonic()
    buffer.close()
    while free_bytes() < before + 2 * GIB and time.monotonic() < begin + SECONDS:
        time.sleep(0.01)
    assert time.monotonic() - begin < 1
    assert all(transfer.future.done() for transfer in transfers)
    assert isinstance(transfers[-1].future.exception(), TransferCancelled)


def test_an_engine_killed_before_its_event_does_not_hold_its_memory(
    open_backend: OpenBackend, mortal: EngineProcess, tmp_path: Any
) -> None:
    backend = open_backend()
    region = mortal.region("make", size_bytes=64 << 20)
    buffer = attach(backend, region)
    path = tmp_path / "late"
    path.write_bytes(bytes(region.size_bytes))
    ready_event = bytes.fromhex(mortal.ask("load_late", number=0, path=str(path), seconds=10.0))
    transfer = buffer.store([ChunkCopy(l1_offset_bytes=0, block_ids=(np.array([0]),))], ready_event)
    time.sleep(0.2)
    assert not transfer.future.done()
    mortal.kill()
    time.sleep(1.0)
    assert not transfer.future.done()  # else it has copied what the engine had not finished
    begin = time.monotonic()
    transfer.cancel()
    with pytest.raises(TransferCancelled):
        transfer.future.result(SECONDS)
    buffer.close()
    assert time.monotonic() - begin < 1


def test_the_driver_returns_the_size_of_an_allocation(runtime: CupyRuntime, engine: EngineProcess) -> None:
    answer = engine.ask("make", size_bytes=5 << 20)
    device = runtime.devices[canonical_uuid(engine.ask("uuid"))]
    address = device.open_memory(bytes.fromhex(answer["handle"]))
    assert device.bytes_from(address) == answer["allocated_bytes"]
    assert device.bytes_from(type(address)(address + 9)) == answer["allocated_bytes"] - 9
    device.close_memory(address)


def test_a_region_beyond_its_allocation_is_refused(open_backend: OpenBackend, engine: EngineProcess) -> None:
    answer = engine.ask("make", size_bytes=64 << 20)
    handle = CudaIpc(bytes.fromhex(answer["handle"]), answer["offset_bytes"], engine.ask("uuid"))
    with pytest.raises(RegionError, match="beyond"):
        attach(open_backend(), Region(answer["allocated_bytes"] + (1 << 20), handle))


def test_memory_of_a_process_that_is_gone_is_refused(open_backend: OpenBackend, mortal: EngineProcess) -> None:
    region = mortal.region("make", size_bytes=64 << 20)
    mortal.kill()
    with pytest.raises(RegionError, match=r"regions\[0\]"):
        attach(open_backend(), region)


def test_two_attachments_may_share_an_allocation(open_backend: OpenBackend, engine: EngineProcess) -> None:
    backend = open_backend()
    region = engine.region("make", size_bytes=8 << 20)
    first, second = attach(backend, region), attach(backend, region)
    first.close()
    copy = ChunkCopy(l1_offset_bytes=0, block_ids=(np.array([7]),))
    second.store([copy]).future.result(SECONDS)


def test_an_event_that_cannot_be_opened_is_an_error(runtime: CupyRuntime) -> None:
    device = next(iter(runtime.devices.values()))
    with pytest.raises(CudaError, match="cuIpcOpenEventHandle"):
        device.open_event(bytes(64))


def test_l1_is_registered_and_unregistered(
    open_backend: OpenBackend, l1: np.ndarray[Any, np.dtype[np.uint8]], runtime: CupyRuntime
) -> None:
    import cupy

    def kind(offset_bytes: int) -> int:
        return int(cupy.cuda.runtime.pointerGetAttributes(l1.ctypes.data + offset_bytes).type)

    backend = open_backend(pin_bytes=1 << 20)
    backend.register(0, 3 << 20)
    pinned, pageable = cupy.cuda.runtime.memoryTypeHost, cupy.cuda.runtime.memoryTypeUnregistered
    assert [kind(at << 20) for at in (0, 1, 2, 3)] == [pinned, pinned, pinned, pageable]
    backend.close()
    assert kind(0) == pageable
