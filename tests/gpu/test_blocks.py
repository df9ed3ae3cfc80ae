"""Blocks of another process's GPU memory: the right bytes at the right address, and no other byte touched."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.checksum import kvsum64
from kernels.copies import ChunkCopy
from kernels.cuda.backend import CudaBackend
from kernels.geometry import Group, Plane, PlaneKind, Region
from tests.gpu.conftest import OpenBackend
from tests.gpu.engine_process import EngineProcess
from tests.kernels.reference import LAYOUTS, AlignedEngine, Engine, Shape, without_first

pytestmark = pytest.mark.gpu

CHUNK_SIZE = 32
SECONDS = 60
HYBRID = (
    ("LBHNC", Shape(num_layers=4, num_blocks=24, block_size=16, num_heads=8, head_size=64)),
    ("NL_X_NB_BS_HS", Shape(num_layers=5, num_blocks=50, block_size=8, head_size=576)),
    ("NL_X_TWO_NB_BS_NH_HS", Shape(num_layers=1, num_blocks=12, block_size=32, num_heads=2, head_size=33)),
)

L1 = np.ndarray[Any, np.dtype[np.uint8]]


class Twin:
    """The same bytes on the host, where the reference copies them, and in the engine's process, on the device."""

    def __init__(
        self,
        engine: EngineProcess,
        folder: Path,
        *layouts: tuple[str, Shape],
        one_region: bool = False,
        alignment: int = 1,
    ) -> None:
        self.host = AlignedEngine(*layouts, one_region=one_region, alignment=alignment)
        self._engine = engine
        self._folder = folder
        self.regions: list[Region] = []
        for number, contents in enumerate(self.host.contents()):
            path = folder / f"region-{number}"
            path.write_bytes(contents)
            self.regions.append(engine.region("load", path=str(path)))

    def is_same(self) -> bool:
        """Return whether both have the same bytes, including those around the planes."""
        for number, contents in enumerate(self.host.contents()):
            path = self._folder / f"dump-{number}"
            self._engine.ask("dump", number=number, path=str(path))
            if path.read_bytes() != contents:
                return False
        return True


def random_copies(
    engine: Engine, num_chunks: int, pitch_bytes: int, skip_tokens: Sequence[int] = ()
) -> list[ChunkCopy]:
    rng = np.random.default_rng(num_chunks)
    tables = [
        rng.permutation(group.num_blocks)[: num_chunks * CHUNK_SIZE // group.block_size].reshape(num_chunks, -1)
        for group in engine.groups
    ]
    return [
        ChunkCopy(
            l1_offset_bytes=number * pitch_bytes,
            block_ids=without_first([table[number] for table in tables], engine.groups, skip_tokens),
            with_checksum=True,
        )
        for number in range(num_chunks)
    ]


def check_both_ways(
    backend: CudaBackend, twin: Twin, l1: L1, gap_bytes: int = 0, skip_tokens: Sequence[int] = ()
) -> None:
    buffer = backend.attach(twin.host.groups, twin.regions, CHUNK_SIZE)
    expected_l1 = l1.copy()
    copies = random_copies(twin.host, 3, buffer.chunk_bytes + gap_bytes, skip_tokens)
    for copy in copies:
        chunk = expected_l1[copy.l1_offset_bytes : copy.l1_offset_bytes + buffer.chunk_bytes]
        chunk[:] = np.frombuffer(twin.host.read_chunk(copy.block_ids, chunk.tobytes()), dtype=np.uint8)
    stored = buffer.store(copies)
    stored.future.result(SECONDS)
    assert np.array_equal(l1, expected_l1)
    assert twin.is_same()
    checksums = [kvsum64(l1[copy.l1_offset_bytes :][: buffer.chunk_bytes]) for copy in copies]
    assert stored.checksums.tolist() == checksums

    others = random_copies(twin.host, 2, buffer.chunk_bytes + gap_bytes, skip_tokens)
    for copy in others:
        chunk = expected_l1[copy.l1_offset_bytes : copy.l1_offset_bytes + buffer.chunk_bytes]
        twin.host.write_chunk(chunk.tobytes(), copy.block_ids)
    damaged = others[1].l1_offset_bytes + buffer.chunk_bytes - 1  # of a block that is copied, if one is
    for flipped_bits in (1, 0):
        l1[damaged] ^= flipped_bits
        retrieved = buffer.retrieve(others)
        retrieved.future.result(SECONDS)
        l1[damaged] ^= flipped_bits
        assert (retrieved.checksums == checksums[:2]).tolist() == [True, not flipped_bits]
    assert np.array_equal(l1, expected_l1)
    assert twin.is_same()
    buffer.close()
    twin.host.close()


@pytest.mark.parametrize("alignment", [16, 1], ids=["aligned", "not-aligned"])
@pytest.mark.parametrize("one_region", [True, False], ids=["one-region", "region-per-tensor"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(
    open_backend: OpenBackend,
    engine: EngineProcess,
    l1: L1,
    tmp_path: Path,
    name: str,
    one_region: bool,
    alignment: int,
) -> None:
    shape = Shape(num_blocks=12, block_size=16, num_heads=2, head_size=16)
    twin = Twin(engine, tmp_path, (name, shape), one_region=one_region, alignment=alignment)
    check_both_ways(open_backend(), twin, l1)


@pytest.mark.parametrize("gap_bytes", [0, 3, 4096], ids=["dense", "odd", "apart"])
@pytest.mark.parametrize("staging_bytes", [1, 100_000, 8 << 20], ids=["a-plane", "some-planes", "all"])
@pytest.mark.parametrize("skip_tokens", [(), (16, 8, 0), (0, 24, 32), (CHUNK_SIZE, 0, CHUNK_SIZE)], ids=str)
def test_groups_that_share_a_chunk(
    open_backend: OpenBackend,
    engine: EngineProcess,
    l1: L1,
    tmp_path: Path,
    skip_tokens: tuple[int, ...],
    staging_bytes: int,
    gap_bytes: int,
) -> None:
    backend = open_backend(staging_bytes=staging_bytes, staging_slots=3, pin_bytes=1 << 20)
    twin = Twin(engine, tmp_path, *HYBRID, alignment=1 if gap_bytes == 3 else 16)
    check_both_ways(backend, twin, l1, gap_bytes, skip_tokens)


@pytest.mark.parametrize("l1_bytes", [32 << 20], ids=["32-MiB"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_values_come_back(open_backend: OpenBackend, engine: EngineProcess, dtype: str) -> None:
    layers, blocks, block_size, heads, head_size = 8, 64, 16, 8, 128
    shape = [layers, 2, blocks, block_size, heads, head_size]
    region = engine.region("random", shape=shape, dtype=dtype, seed=3)
    head_bytes = region.size_bytes // (layers * 2 * blocks * block_size * heads)
    block_bytes = block_size * heads * head_bytes
    planes = tuple(
        Plane(layer=layer, kind=kind, region=0, offset_bytes=(2 * layer + number) * blocks * block_bytes)
        for layer in range(layers)
        for number, kind in enumerate((PlaneKind.K, PlaneKind.V))
    )
    group = Group(
        num_layers=layers,
        num_blocks=blocks,
        block_size=block_size,
        num_heads=heads,
        head_bytes=head_bytes,
        dtype=dtype,
        block_stride_bytes=block_bytes,
        token_stride_bytes=heads * head_bytes,
        head_stride_bytes=head_bytes,
        planes=planes,
    )
    backend = open_backend()
    buffer = backend.attach([group], [region], 256)
    ids = np.random.default_rng(1).permutation(blocks).reshape(-1, 256 // block_size)
    copies = [
        ChunkCopy(l1_offset_bytes=number * buffer.chunk_bytes, block_ids=(some,)) for number, some in enumerate(ids)
    ]
    buffer.store(copies).future.result(SECONDS)
    engine.ask("zero", number=0)
    assert not engine.ask("same", number=0, shape=shape, dtype=dtype, seed=3)
    buffer.retrieve(copies).future.result(SECONDS)
    assert engine.ask("same", number=0, shape=shape, dtype=dtype, seed=3)


def test_a_store_waits_for_the_engine(open_backend: OpenBackend, engine: EngineProcess, l1: L1, tmp_path: Path) -> None:
    twin = Twin(engine, tmp_path, HYBRID[0])
    backend = open_backend()
    buffer = backend.attach(twin.host.groups, twin.regions, CHUNK_SIZE)
    (copy,) = random_copies(twin.host, 1, 0)
    twin.host.write_chunk(np.random.default_rng(8).bytes(buffer.chunk_bytes), copy.block_ids)
    path = tmp_path / "late"
    path.write_bytes(twin.host.contents()[0])
    ready_event = bytes.fromhex(engine.ask("load_late", number=0, path=str(path), seconds=0.5))
    waiting = buffer.store([copy], ready_event)
    waiting.future.result(SECONDS)
    assert waiting.phases[0].duration_seconds > 0.1
    assert l1[: buffer.chunk_bytes].tobytes() == twin.host.read_chunk(copy.block_ids)
    twin.host.close()


@pytest.mark.parametrize("l1_bytes", [32 << 20], ids=["32-MiB"])
def test_the_device_measures_the_phases(open_backend: OpenBackend, engine: EngineProcess, l1: L1) -> None:
    block_bytes, num_chunks = 1 << 20, 32
    region = engine.region("make", size_bytes=num_chunks * block_bytes)
    group = Group(
        num_layers=1,
        num_blocks=num_chunks,
        block_size=1,
        num_heads=1,
        head_bytes=block_bytes,
        dtype="uint8",
        block_stride_bytes=block_bytes,
        token_stride_bytes=0,
        head_stride_bytes=0,
        planes=(Plane(layer=0, kind=PlaneKind.LATENT, region=0, offset_bytes=0),),
    )
    backend = open_backend(staging_bytes=block_bytes)
    backend.register(0, l1.size)
    buffer = backend.attach([group], [region], 1)
    copies = [ChunkCopy(l1_offset_bytes=n * block_bytes, block_ids=(np.array([n]),)) for n in range(num_chunks)]
    for _ in range(3):
        begin = time.monotonic()
        transfer = buffer.store(copies)
        transfer.future.result(SECONDS)
        life_seconds = time.monotonic() - begin
        waiting, gathering, copying = transfer.phases
        assert [step.name for step in transfer.phases] == ["wait", "gather", "copy"]
        assert waiting.duration_seconds == gathering.start_seconds < copying.start_seconds
        assert copying.start_seconds < gathering.start_seconds + gathering.duration_seconds
        assert 0 < gathering.duration_seconds < life_seconds
        assert num_chunks * block_bytes / 1e12 < copying.duration_seconds < life_seconds
    buffer.close()
