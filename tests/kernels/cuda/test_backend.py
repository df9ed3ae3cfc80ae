"""The CUDA backend on the fake device with real threads: every layout, refusals, and release of all memory."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from kernels.checksum import kvsum64
from kernels.cuda.stream_worker import StreamWorker
from kernels.errors import BackendError, GeometryError, RegionError, TransferCancelled
from kernels.geometry import CudaIpc, PosixShm, Region
from tests.kernels.cuda.depot import CHUNK_SIZE, LAYOUT, SECONDS, Attached, CudaDepot
from tests.kernels.cuda.fake_cuda import FAKE_UUID
from tests.kernels.reference import LAYOUTS, AlignedEngine, Engine, Shape

HYBRID = (
    ("LBHNC", Shape(num_layers=2, num_blocks=9, block_size=4, num_heads=3)),
    ("NL_X_NB_BS_HS", Shape(num_layers=5, num_blocks=30, block_size=2, head_size=7, dtype="uint8")),
    ("NL_X_TWO_NB_BS_NH_HS", Shape(num_layers=1, num_blocks=7, block_size=6, num_heads=1, dtype="uint32")),
)


@pytest.fixture
def depots() -> Iterator[list[CudaDepot]]:
    """Those that a test makes; at its end nothing went wrong and nothing is left of them."""
    depots: list[CudaDepot] = []
    yield depots
    for depot in depots:
        depot.backend.close()
        assert depot.fake.faults == []
        assert depot.fake.left_over() == []


def check_both_ways(depot: CudaDepot, engine: Engine, num_chunks: int, skip_tokens: Sequence[int] = ()) -> None:
    """Store some blocks, then retrieve the chunks into others; no other byte is touched, and each chunk is summed."""
    buffer = depot.attach(engine)
    memory, expected_l1 = engine.contents(), bytearray(depot.l1)
    copies = depot.random_copies(engine, num_chunks, skip_tokens=skip_tokens, with_checksum=True)
    for copy in copies:
        at = slice(copy.l1_offset_bytes, copy.l1_offset_bytes + buffer.chunk_bytes)
        expected_l1[at] = engine.read_chunk(copy.block_ids, bytes(expected_l1[at]))
    stored = buffer.store(copies)
    stored.future.result(SECONDS)
    assert depot.l1 == expected_l1
    assert engine.contents() == memory
    checksums = [kvsum64(memoryview(depot.l1)[copy.l1_offset_bytes :][: buffer.chunk_bytes]) for copy in copies]
    assert stored.checksums.tolist() == checksums

    others = depot.random_copies(engine, num_chunks, skip_tokens=skip_tokens, with_checksum=True)
    retrieved = buffer.retrieve(others)
    retrieved.future.result(SECONDS)
    assert depot.l1 == expected_l1
    assert retrieved.checksums.tolist() == checksums
    moved = engine.contents()
    for each, contents in zip(engine._memory, memory, strict=True):
        each.bytes[:] = np.frombuffer(contents, dtype=np.uint8)
    for copy in others:
        chunk = bytes(depot.l1[copy.l1_offset_bytes : copy.l1_offset_bytes + buffer.chunk_bytes])
        engine.write_chunk(chunk, copy.block_ids)
    assert moved == engine.contents()


@pytest.mark.parametrize("alignment", [16, 8, 4])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_summed_whatever_its_alignment(depots: list[CudaDepot], name: str, alignment: int) -> None:
    depots.append(CudaDepot(has_threads=True))
    for skip_tokens in ((), (4,)):
        check_both_ways(depots[0], AlignedEngine((name, Shape(num_heads=3)), alignment=alignment), 2, skip_tokens)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_copied_bit_by_bit(depots: list[CudaDepot], name: str, dtype: str) -> None:
    depots.append(CudaDepot(has_threads=True))
    check_both_ways(depots[0], Engine((name, Shape(num_heads=3, dtype=dtype))), 2)


@pytest.mark.parametrize("staging_bytes", [1, 500, 3_000, 1 << 20], ids=["a-plane", "some-planes", "a-chunk", "all"])
@pytest.mark.parametrize("alignment", [16, 1])
def test_groups_share_a_chunk_however_it_is_cut(depots: list[CudaDepot], staging_bytes: int, alignment: int) -> None:
    depots.append(CudaDepot(has_threads=True, staging_bytes=staging_bytes))
    for skip_tokens in ((), (12, 12, 12), (8, 10, 0), (0, 12, 6), (12, 0, 12)):
        check_both_ways(depots[0], AlignedEngine(*HYBRID, alignment=alignment), 2, skip_tokens)


def test_regions_in_one_allocation_are_mapped_once_and_unmapped_with_the_last(depots: list[CudaDepot]) -> None:
    depot = CudaDepot(has_threads=True)
    depots.append(depot)
    engine = Engine(LAYOUT, one_region=True)
    memory = engine._memory[0].bytes
    handle = depot.fake.export_memory(memory)
    half = memory.size // 2
    regions = [Region(memory.size - at, CudaIpc(handle, at, f"GPU-{FAKE_UUID.upper()}")) for at in (0, 1)]
    assert half > max(plane.offset_bytes for plane in engine.groups[0].planes)
    planes = tuple(
        dataclasses.replace(plane, region=number % 2, offset_bytes=plane.offset_bytes - number % 2)
        for number, plane in enumerate(engine.groups[0].planes)
    )
    groups = [dataclasses.replace(engine.groups[0], planes=planes)]
    first, second = (depot.backend.attach(groups, regions, CHUNK_SIZE) for _ in range(2))
    assert first.mapped_bytes == 2 * memory.size - 1
    copies = depot.random_copies(engine, 3)
    for buffer in (first, second):
        buffer.store(copies).future.result(SECONDS)
        for copy in copies:
            chunk = engine.read_chunk(copy.block_ids)
            assert depot.l1[copy.l1_offset_bytes : copy.l1_offset_bytes + len(chunk)] == chunk
        assert "imported memory" in depot.fake.left_over()
        buffer.close()
        assert buffer.mapped_bytes == 0
    assert "imported memory" not in depot.fake.left_over()


def test_a_dead_engines_memory_is_unmapped_before_anything_else_is_given_back() -> None:
    attached = Attached()
    attached.store(20)
    attached.retrieve(20)
    for direction in ("store", "retrieve"):
        attached.advance(direction, 3)
    attached.fake.calls.clear()
    attached.buffer.close()
    given_back = [call for call in attached.fake.calls if call.startswith(("free", "destroy"))]
    num_regions = len(attached.engine._memory)
    assert given_back[:num_regions] == ["free imported memory"] * num_regions
    assert "free imported memory" not in given_back[num_regions:]
    assert not {"gather", "scatter"} & set(attached.fake.calls)
    attached.close()


def test_closing_stops_both_directions_before_it_waits_for_one(depots: list[CudaDepot]) -> None:
    attached = Attached()
    depots.append(attached.depot)
    transfers = [attached.store(20), attached.retrieve(20)]
    workers = {name: thread.worker for name, thread in attached.depot.workers.items()}
    for name, worker in workers.items():
        (other,) = (worker for other_name, worker in workers.items() if other_name != name)
        advance_worker = worker.advance

        def advance(advance_worker: Callable[[], object] = advance_worker, other: StreamWorker = other) -> None:
            """Advance both threads, also when a test waits for one of them."""
            StreamWorker.advance(other)
            advance_worker()

        worker.advance = advance  # type: ignore[method-assign]
    attached.fake.calls.clear()
    attached.buffer.close()
    assert all(isinstance(transfer.future.exception(0), TransferCancelled) for transfer in transfers)
    assert not {"gather", "scatter"} & set(attached.fake.calls)


def test_engines_that_leave_while_their_blocks_are_moved_leave_nothing(depots: list[CudaDepot]) -> None:
    depot = CudaDepot(has_threads=True, steps_ahead=3)
    depots.append(depot)
    for _ in range(20):
        engine = Engine(LAYOUT)
        buffer = depot.attach(engine)
        transfers = [
            buffer.store(depot.random_copies(engine, 20, some=slice(0, 72))),
            buffer.retrieve(depot.random_copies(engine, 20, some=slice(72, 144), l1_offset_bytes=1 << 16)),
        ]
        buffer.close()
        engine.close()
        for transfer in transfers:
            assert isinstance(transfer.future.exception(0), TransferCancelled | None)
        assert set(depot.fake.left_over()) <= {"registered memory"}


def test_memory_is_mapped_anew_for_an_engine_that_comes_back(depots: list[CudaDepot]) -> None:
    depot = CudaDepot(has_threads=True)
    depots.append(depot)
    engine = Engine(LAYOUT, one_region=True)
    regions = [depot.region(engine._memory[0].bytes)]
    for _ in range(2):
        buffer = depot.backend.attach(engine.groups, regions, CHUNK_SIZE)
        buffer.store(depot.random_copies(engine, 1)).future.result(SECONDS)
        buffer.close()


def test_the_backend_forgets_what_has_ended(depots: list[CudaDepot]) -> None:
    depots.append(CudaDepot(has_threads=True))
    buffer = depots[0].attach(Engine(LAYOUT))
    forgotten = weakref.ref(buffer)
    buffer.close()
    del buffer
    gc.collect()
    assert forgotten() is None


def test_a_region_beyond_its_allocation_is_refused(depots: list[CudaDepot]) -> None:
    depot = CudaDepot(has_threads=True)
    depots.append(depot)
    engine = Engine(LAYOUT, one_region=True)
    memory = engine._memory[0].bytes
    region = Region(memory.size, CudaIpc(depot.fake.export_memory(memory), 1, FAKE_UUID))
    with pytest.raises(RegionError, match=r"regions\[0\] reaches beyond"):
        depot.backend.attach(engine.groups, [region], CHUNK_SIZE)


def test_a_handle_that_cannot_be_opened_is_named(depots: list[CudaDepot]) -> None:
    depot = CudaDepot(has_threads=True)
    depots.append(depot)
    engine = Engine(LAYOUT)
    regions = [depot.region(memory.bytes) for memory in engine._memory]
    regions[2] = dataclasses.replace(regions[2], handle=CudaIpc(bytes(64), 0, FAKE_UUID))
    with pytest.raises(RegionError, match=r"regions\[2\]"):
        depot.backend.attach(engine.groups, regions, CHUNK_SIZE)


def test_a_device_that_is_not_visible_is_named(depots: list[CudaDepot]) -> None:
    depot = CudaDepot(has_threads=True)
    depots.append(depot)
    engine = Engine(LAYOUT, one_region=True)
    region = Region(1 << 20, CudaIpc(bytes(64), 0, "GPU-AB"))
    with pytest.raises(BackendError, match=f"UUID ab .*{FAKE_UUID}"):
        depot.backend.attach(engine.groups, [region], CHUNK_SIZE)


def test_the_device_is_chosen_by_its_uuid(depots: list[CudaDepot]) -> None:
    depot = CudaDepot(has_threads=True)
    depots.append(depot)
    engine = Engine(LAYOUT)
    other = depot.fake.add_device("ab")
    buffer = depot.attach(engine, uuid="GPU-AB")
    (copy,) = depot.random_copies(engine, 1)
    buffer.store([copy]).future.result(SECONDS)
    chunk = engine.read_chunk(copy.block_ids)
    assert depot.l1[copy.l1_offset_bytes : copy.l1_offset_bytes + len(chunk)] == chunk
    assert {"prepare", "open_memory", "new_stream", "gather", "copy_to_host"} <= set(other.calls)
    assert set(depot.fake.calls) == {"allocate_pinned", "register"}  # what a machine has once


def test_regions_are_all_on_one_device(depots: list[CudaDepot]) -> None:
    depot = CudaDepot(has_threads=True)
    depots.append(depot)
    engine = Engine(LAYOUT, one_region=True)
    here, there = (Region(1 << 20, CudaIpc(bytes(64), 0, uuid)) for uuid in (FAKE_UUID, "GPU-AB"))
    for other, field in ((there, r"regions\[1\].cuda_ipc.device_uuid"), (Region(1 << 20, PosixShm("x")), "regions")):
        with pytest.raises(GeometryError, match=field):
            depot.backend.attach(engine.groups, [here, other], CHUNK_SIZE)


def test_an_attach_that_fails_anywhere_leaves_nothing() -> None:
    engine = Engine(LAYOUT)
    number = 0
    while True:
        number += 1
        depot = CudaDepot(has_threads=True)
        depot.fake.fail_call = number
        try:
            depot.attach(engine)
        except (BackendError, RegionError):
            assert depot.fake.left_over() == []
            depot.backend.close()
        else:
            break
    assert number > 50
    depot.fake.fail_call = 0
    depot.backend.close()
    engine.close()


def test_closing_the_backend_ends_attachments(depots: list[CudaDepot]) -> None:
    depot = CudaDepot(has_threads=True)
    engine = Engine(LAYOUT)
    buffer = depot.attach(engine)
    transfer = buffer.store(depot.random_copies(engine, 9), depot.fake.export_event())
    depots.append(depot)
    depot.backend.close()
    assert transfer.future.done()
    buffer.close()


def test_a_read_only_arena_is_refused(depots: list[CudaDepot]) -> None:
    depot = CudaDepot()
    with pytest.raises(ValueError, match="writable"):
        type(depot.backend)(memoryview(bytes(9)), depot.fake)
