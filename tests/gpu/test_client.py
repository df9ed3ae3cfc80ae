"""The depot's backend opens what the client exports of real torch tensors and events, with the right bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.copies import ChunkCopy
from kernels.cuda.cupy_runtime import CupyRuntime
from kernels.geometry import CudaIpc, Group, Plane, PlaneKind, Region
from tests.gpu.conftest import OpenBackend
from tests.gpu.engine_process import EngineProcess

for needed in ("grpc", "google.protobuf"):
    pytest.importorskip(needed, reason="the client needs grpcio and protobuf")

pytestmark = pytest.mark.gpu

SECONDS = 60
LAYERS, BLOCKS, TOKENS, HEADS, SIZE = 6, 24, 16, 4, 64
CHUNK_BLOCKS = 2

L1 = np.ndarray[Any, np.dtype[np.uint8]]


def share(engine: EngineProcess, dtype: str) -> tuple[Group, list[Region]]:
    """Let the engine make a KV cache, and convert the client's description of it to the backend's."""
    from kvdepot.v1 import cache_pb2

    answer = engine.ask("share", num_layers=LAYERS, shape=[2, BLOCKS, TOKENS, HEADS, SIZE], dtype=dtype)
    message = cache_pb2.KvGroup.FromString(bytes.fromhex(answer["group"]))
    facts = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    planes = [
        Plane(layer=plane.layer, kind=PlaneKind(plane.kind), region=plane.region, offset_bytes=plane.offset_bytes)
        for plane in message.planes
    ]
    regions = []
    for encoded in answer["regions"]:
        region = cache_pb2.MemoryRegion.FromString(bytes.fromhex(encoded))
        ipc = region.cuda_ipc
        regions.append(Region(region.size_bytes, CudaIpc(ipc.handle, ipc.offset_bytes, ipc.device_uuid)))
    return Group(**(facts | {"planes": tuple(planes)})), regions


def contents(engine: EngineProcess, folder: Path) -> L1:
    """Return the bytes of the engine's layers, as ``[layers, 2, blocks, bytes of a block]``."""
    layers = []
    for number in range(LAYERS):
        engine.ask("dump", number=number, path=str(folder / "dump"))
        layers.append(np.fromfile(folder / "dump", dtype=np.uint8).reshape(2, BLOCKS, -1))
    return np.stack(layers)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_tensors_that_the_client_exports_are_moved(
    open_backend: OpenBackend, engine: EngineProcess, l1: L1, tmp_path: Path, dtype: str
) -> None:
    group, regions = share(engine, dtype)
    backend = open_backend()
    buffer = backend.attach([group], regions, CHUNK_BLOCKS * TOKENS)
    ids = np.random.default_rng(4).permutation(BLOCKS).reshape(-1, CHUNK_BLOCKS)
    copies = [
        ChunkCopy(l1_offset_bytes=number * buffer.chunk_bytes, block_ids=(some,)) for number, some in enumerate(ids)
    ]
    before = contents(engine, tmp_path)
    buffer.store(copies).future.result(SECONDS)
    for copy, some in zip(copies, ids, strict=True):
        chunk = l1[copy.l1_offset_bytes : copy.l1_offset_bytes + buffer.chunk_bytes]
        assert np.array_equal(chunk, before[:, :, some].ravel())
    for number in range(LAYERS):
        engine.ask("zero", number=number)
    assert not contents(engine, tmp_path).any()
    buffer.retrieve(copies).future.result(SECONDS)
    assert np.array_equal(contents(engine, tmp_path), before)
    buffer.close()


def test_an_event_that_the_client_exports_is_waited_for(
    open_backend: OpenBackend, engine: EngineProcess, l1: L1, tmp_path: Path
) -> None:
    group, regions = share(engine, "bfloat16")
    backend = open_backend()
    buffer = backend.attach([group], regions, CHUNK_BLOCKS * TOKENS)
    late = np.random.default_rng(6).integers(0, 256, contents(engine, tmp_path)[0].size, dtype=np.uint8)
    late.tofile(tmp_path / "late")
    engine.ask("load_late", number=0, path=str(tmp_path / "late"), seconds=0.5)
    ready_event = bytes.fromhex(engine.ask("ready_event"))
    buffer.store([ChunkCopy(l1_offset_bytes=0, block_ids=(np.array([3, 1]),))], ready_event).future.result(SECONDS)
    expected = late.reshape(2, BLOCKS, -1)[:, [3, 1]].ravel()
    assert np.array_equal(l1[: expected.size], expected)
    buffer.close()


def test_memory_of_expandable_segments_is_refused_by_name(runtime: CupyRuntime) -> None:
    engine = EngineProcess(PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
    assert "expandable_segments:False" in engine.ask("why_memory_is_refused")
    engine.close()


def test_an_event_for_one_process_is_refused_by_name(engine: EngineProcess) -> None:
    assert "interprocess=True" in engine.ask("why_event_is_refused")
