"""The host backend: the right bytes at the right address, and no other byte touched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.copies import ChunkCopy
from kernels.errors import AccessDenied, BackendError, GeometryError, RegionError, TransferCancelled
from kernels.geometry import CudaIpc, Group, Region
from kernels.host.backend import HostBackend
from kernels.host.buffer import HostBuffer
from tests.kernels.host.test_copy_pool import SECONDS, Gate
from tests.kernels.reference import KV_LAYOUTS, LATENT_LAYOUTS, LAYOUTS, Engine, Shape, without_first
from tests.kernels.test_map import mappings_of

CHUNK_SIZE = 12
ODD = 3  # where the first chunk is in the arena, and what is between two


class Depot:
    """A backend with an arena full of noise, and the engines that are attached to it."""

    def __init__(self, l1_bytes: int = 1 << 20) -> None:
        self.rng = np.random.default_rng(11)
        self.l1 = bytearray(self.rng.bytes(l1_bytes))
        self.backend = HostBackend(memoryview(self.l1), 2)
        self._attached: list[tuple[Engine, HostBuffer]] = []

    def attach(self, engine: Engine, chunk_size: int = CHUNK_SIZE) -> HostBuffer:
        buffer = self.backend.attach(engine.groups, engine.regions, chunk_size, allow_process_fd=True)
        self._attached.append((engine, buffer))
        return buffer

    def random_copies(
        self, engine: Engine, num_chunks: int, chunk_size: int = CHUNK_SIZE, skip_tokens: Sequence[int] = ()
    ) -> list[ChunkCopy]:
        """Return chunks at odd offsets, one after the other, of blocks in random order, none twice."""
        tables = []
        for group in engine.groups:
            blocks = chunk_size // group.block_size
            tables.append(self.rng.permutation(group.num_blocks)[: num_chunks * blocks].reshape(num_chunks, blocks))
        pitch = chunk_size * sum(group.token_bytes for group in engine.groups) + ODD
        return [
            ChunkCopy(
                l1_offset_bytes=ODD + index * pitch,
                block_ids=without_first([table[index] for table in tables], engine.groups, skip_tokens),
            )
            for index in range(num_chunks)
        ]

    def store(self, buffer: HostBuffer, copies: Sequence[ChunkCopy]) -> None:
        buffer.store(copies).future.result(SECONDS)

    def retrieve(self, buffer: HostBuffer, copies: Sequence[ChunkCopy]) -> None:
        buffer.retrieve(copies).future.result(SECONDS)

    def close(self) -> None:
        self.backend.close()
        for engine, buffer in self._attached:
            buffer.close()
            engine.close()


@pytest.fixture
def depot() -> Iterator[Depot]:
    depot = Depot()
    yield depot
    depot.close()


def check_store(depot: Depot, engine: Engine, copies: Sequence[ChunkCopy], chunk_size: int = CHUNK_SIZE) -> None:
    buffer = depot.attach(engine, chunk_size)
    memory, expected = engine.contents(), bytearray(depot.l1)
    for copy in copies:
        at = slice(copy.l1_offset_bytes, copy.l1_offset_bytes + buffer.chunk_bytes)
        expected[at] = engine.read_chunk(copy.block_ids, bytes(expected[at]))
    depot.store(buffer, copies)
    assert depot.l1 == expected
    assert engine.contents() == memory


def check_retrieve(depot: Depot, engine: Engine, copies: Sequence[ChunkCopy], chunk_size: int = CHUNK_SIZE) -> None:
    buffer = depot.attach(engine, chunk_size)
    before, l1 = engine.contents(), bytes(depot.l1)
    depot.retrieve(buffer, copies)
    moved = engine.contents()
    for memory, contents in zip(engine._memory, before, strict=True):
        memory.bytes[:] = np.frombuffer(contents, dtype=np.uint8)
    for copy in copies:
        chunk = l1[copy.l1_offset_bytes : copy.l1_offset_bytes + buffer.chunk_bytes]
        engine.write_chunk(chunk, copy.block_ids)
    assert moved == engine.contents()
    assert depot.l1 == l1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("one_region", [True, False], ids=["one-region", "region-per-tensor"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_become_canonical_chunks(depot: Depot, name: str, one_region: bool, dtype: str) -> None:
    engine = Engine((name, Shape(num_heads=3, dtype=dtype)), one_region=one_region)
    check_store(depot, engine, depot.random_copies(engine, 2))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("one_region", [True, False], ids=["one-region", "region-per-tensor"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_chunks_become_blocks_and_nothing_else_is_written(
    depot: Depot, name: str, one_region: bool, dtype: str
) -> None:
    engine = Engine((name, Shape(num_heads=3, dtype=dtype)), one_region=one_region)
    check_retrieve(depot, engine, depot.random_copies(engine, 2))


@pytest.mark.parametrize("skip_tokens", [4, 8, 12])
@pytest.mark.parametrize("name", LAYOUTS)
def test_of_a_chunks_last_blocks_nothing_before_them_is_touched(depot: Depot, name: str, skip_tokens: int) -> None:
    engine = Engine((name, Shape()))
    copies = depot.random_copies(engine, 2, skip_tokens=[skip_tokens])
    check_store(depot, engine, copies)
    check_retrieve(depot, engine, copies)


HYBRID = (
    ("LBHNC", Shape(num_layers=2, num_blocks=9, block_size=4, num_heads=3)),
    ("NL_X_NB_BS_HS", Shape(num_layers=5, num_blocks=30, block_size=2, head_size=7, dtype="uint8")),
    ("NL_X_TWO_NB_BS_NH_HS", Shape(num_layers=1, num_blocks=7, block_size=6, num_heads=1, dtype="uint32")),
)


@pytest.mark.parametrize("one_region", [True, False])
def test_groups_with_blocks_of_different_sizes_share_a_chunk(depot: Depot, one_region: bool) -> None:
    engine = Engine(*HYBRID, one_region=one_region)
    check_store(depot, engine, depot.random_copies(engine, 3))


@pytest.mark.parametrize("skip_tokens", [(0, 6, 12), (12, 0, 6), (4, 2, 0), (12, 12, 12)], ids=str)
def test_each_group_has_a_beginning_of_its_own(depot: Depot, skip_tokens: tuple[int, ...]) -> None:
    engine = Engine(*HYBRID)
    copies = depot.random_copies(engine, 3, skip_tokens=skip_tokens)
    check_store(depot, engine, copies)
    check_retrieve(depot, engine, copies)


@pytest.mark.parametrize("chunk_size", [4, 8, 32])
def test_a_chunk_may_be_one_block_or_all_of_them(depot: Depot, chunk_size: int) -> None:
    for name in ("BHLNC", "NL_X_TWO_NB_BS_NH_HS"):
        engine = Engine((name, Shape()))
        check_store(depot, engine, depot.random_copies(engine, 1, chunk_size), chunk_size)
        check_retrieve(depot, engine, depot.random_copies(engine, 1, chunk_size), chunk_size)


@pytest.mark.parametrize("shape", [Shape(num_heads=1), Shape(block_size=1), Shape(num_layers=1), Shape(head_size=1)])
@pytest.mark.parametrize("name", KV_LAYOUTS)
def test_dimensions_of_size_one_are_no_special_case(depot: Depot, name: str, shape: Shape) -> None:
    engine = Engine((name, shape))
    copies = depot.random_copies(engine, 1, 4)
    check_store(depot, engine, copies, 4)
    check_retrieve(depot, engine, copies, 4)


def test_a_buffer_of_one_block_is_no_special_case(depot: Depot) -> None:
    engine = Engine(("BLHNC", Shape(num_blocks=1)))
    copies = depot.random_copies(engine, 1, 4)
    check_store(depot, engine, copies, 4)
    check_retrieve(depot, engine, copies, 4)


@pytest.mark.parametrize("ids", [[0, 1, 2], [5, 6, 7], [7, 6, 5], [1, 2, 4], [3, 1, 2], [0, 7, 0]])
def test_blocks_that_follow_each_other_are_copied_like_any(depot: Depot, ids: list[int]) -> None:
    engine = Engine(("LBHNC", Shape()))
    copy = ChunkCopy(l1_offset_bytes=0, block_ids=(np.array(ids),))
    check_store(depot, engine, [copy])
    if len(set(ids)) == len(ids):
        check_retrieve(depot, engine, [copy])
        check_retrieve(depot, engine, [ChunkCopy(l1_offset_bytes=0, block_ids=(np.array(ids[1:]),))])


@pytest.mark.parametrize("head_size", [1 << 9, 1 << 17, 5 << 17])
@pytest.mark.parametrize("name", ["NL_X_TWO_NB_BS_NH_HS", "BHLNC"])
def test_pieces_of_large_blocks_leave_nothing_out(name: str, head_size: int) -> None:
    depot = Depot(48 << 20)
    engine = Engine((name, Shape(num_layers=3, num_blocks=3, block_size=1, num_heads=2, head_size=head_size)))
    copies = [ChunkCopy(l1_offset_bytes=ODD, block_ids=(np.array([0, 1, 2]),))]
    check_store(depot, engine, copies, 3)
    check_retrieve(depot, engine, copies, 3)
    depot.close()


@pytest.mark.parametrize("layouts", [KV_LAYOUTS, LATENT_LAYOUTS], ids=["KV", "LATENT"])
def test_what_one_layout_stored_any_other_retrieves(depot: Depot, layouts: dict[str, object]) -> None:
    source = Engine(("BHLNC" if "BHLNC" in layouts else "NL_X_NB_BS_HS", Shape(num_heads=3)))
    stored = depot.random_copies(source, 2)
    depot.store(depot.attach(source), stored)
    for name in layouts:
        # Also with other block sizes: a chunk does not depend on them.
        engine = Engine((name, Shape(num_heads=3, num_blocks=17, block_size=2)))
        retrieved = depot.random_copies(engine, 2)
        depot.retrieve(depot.attach(engine), retrieved)
        for copy, original in zip(retrieved, stored, strict=True):
            assert engine.read_chunk(copy.block_ids) == source.read_chunk(original.block_ids)


def test_buffers_of_equal_layers_are_spanned_by_one_copy(depot: Depot) -> None:
    for name in LAYOUTS:
        buffer = depot.attach(Engine((name, Shape())))
        assert [len(spans) for spans in buffer.spans] == [1]


def test_a_transfer_of_no_chunks_is_done(depot: Depot) -> None:
    buffer = depot.attach(Engine(("LBNHC", Shape())))
    depot.store(buffer, [])
    depot.retrieve(buffer, [])


def ids(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("l1_offset_bytes", "block_ids"),
    [
        (-1, [[0, 1, 2]]),
        ((1 << 20) - 100, [[0, 1, 2]]),
        (0, [[0, 1, 8]]),
        (0, [[0, -1, 2]]),
        (0, [[8]]),
        (0, [[0, 1, 2, 3]]),
        (0, [[[0, 1, 2]]]),
        (0, []),
        (0, [[0, 1, 2], [0, 1, 2]]),
    ],
    ids=str,
)
def test_a_copy_that_does_not_fit_is_refused_before_a_byte_moves(
    depot: Depot, l1_offset_bytes: int, block_ids: list[Any]
) -> None:
    engine = Engine(("LBNHC", Shape()))
    buffer = depot.attach(engine)
    good = ChunkCopy(l1_offset_bytes=0, block_ids=(ids(3, 4, 5),))
    bad = ChunkCopy(l1_offset_bytes=l1_offset_bytes, block_ids=tuple(np.array(table) for table in block_ids))
    memory, l1 = engine.contents(), bytes(depot.l1)
    for start in (buffer.store, buffer.retrieve):
        with pytest.raises(ValueError):
            start([good, bad])
    assert engine.contents() == memory
    assert depot.l1 == l1


def test_block_ids_may_change_once_a_transfer_has_begun(depot: Depot) -> None:
    engine = Engine(("LBNHC", Shape()))
    buffer = depot.attach(engine)
    gates = [Gate(), Gate()]
    blocked = depot.backend._l1.stores.start(iter(gates))
    copy = ChunkCopy(l1_offset_bytes=0, block_ids=(ids(5, 1, 3),))
    expected = engine.read_chunk(copy.block_ids)
    transfer = buffer.store([copy])
    copy.block_ids[0][:] = 99
    for gate in gates:
        gate.open.set()
    blocked.future.result(SECONDS)
    transfer.future.result(SECONDS)
    assert depot.l1[: len(expected)] == expected


def test_a_retrieve_does_not_wait_for_stores(depot: Depot) -> None:
    engine = Engine(("LBNHC", Shape()))
    buffer = depot.attach(engine)
    gates = [Gate(), Gate()]
    blocked = depot.backend._l1.stores.start(iter(gates))
    assert all(gate.reached.wait(SECONDS) for gate in gates)
    depot.retrieve(buffer, depot.random_copies(engine, 1))
    assert not blocked.future.done()
    for gate in gates:
        gate.open.set()


@pytest.mark.parametrize("operation", ["store", "retrieve"])
def test_once_a_cancelled_transfer_is_done_nothing_of_it_is_written(operation: str) -> None:
    depot = Depot(48 << 20)
    engine = Engine(("LBHNC", Shape(num_layers=8, num_blocks=48, block_size=16, num_heads=8, head_size=128)))
    buffer = depot.attach(engine, 16)
    copies = [
        ChunkCopy(l1_offset_bytes=index % 40 * buffer.chunk_bytes, block_ids=(ids(index % 48),))
        for index in range(3000)
    ]
    transfer = getattr(buffer, operation)(copies)
    transfer.cancel()
    with pytest.raises(TransferCancelled):
        transfer.future.result(SECONDS)
    written = np.frombuffer(depot.l1, dtype=np.uint8) if operation == "store" else engine._memory[0].bytes
    written[:] = 0
    for pool in (depot.backend._l1.stores, depot.backend._l1.retrieves):
        pool.start(iter([lambda: None] * 99)).future.result(SECONDS)
    assert not written.any()
    depot.close()


def test_a_closed_buffer_and_one_without_regions_copy_nothing(depot: Depot) -> None:
    engine = Engine(("LBNHC", Shape()))
    closed = depot.attach(engine)
    assert closed.mapped_bytes == sum(region.size_bytes for region in engine.regions)
    closed.close()
    inline = depot.backend.attach(engine.groups, [], CHUNK_SIZE, allow_process_fd=True)
    inline.check_size()
    for buffer in (closed, inline):
        assert buffer.mapped_bytes == 0
        with pytest.raises(ValueError, match="not mapped"):
            buffer.store(depot.random_copies(engine, 1))


def test_a_closed_buffer_is_in_no_memory_map(depot: Depot) -> None:
    engine = Engine(("TWO_X_NL_X_NBBS_NH_HS", Shape()))

    def num_mappings() -> list[int]:
        return [len(mappings_of(memory.fd)) for memory in engine._memory]

    buffer = depot.attach(engine)
    depot.store(buffer, depot.random_copies(engine, 2))
    assert num_mappings() == [2] * len(engine.regions)
    buffer.close()
    assert num_mappings() == [1] * len(engine.regions)  # the engine's own


def test_a_shrunken_object_is_noticed(depot: Depot) -> None:
    engine = Engine(("LBNHC", Shape()))
    buffer = depot.attach(engine)
    buffer.check_size()
    engine._memory[0].resize(100)
    with pytest.raises(RegionError):
        buffer.check_size()


def test_attaching_refuses_what_its_parts_refuse(depot: Depot) -> None:
    engine = Engine(("LBNHC", Shape()))
    cuda = Region(size_bytes=1 << 20, handle=CudaIpc(handle=bytes(64), offset_bytes=0, device_uuid="GPU-0"))
    short = [Region(size_bytes=9, handle=region.handle) for region in engine.regions]

    def attach(groups: Sequence[Group], regions: Sequence[Region], allow_process_fd: bool = True) -> None:
        depot.backend.attach(groups, regions, CHUNK_SIZE, allow_process_fd=allow_process_fd)

    with pytest.raises(GeometryError):
        attach(engine.groups, short)
    with pytest.raises(BackendError):
        attach(engine.groups, [cuda])
    with pytest.raises(AccessDenied):
        attach(engine.groups, engine.regions, allow_process_fd=False)
    engine.close()


def test_an_arena_that_is_read_only_is_refused() -> None:
    with pytest.raises(ValueError, match="writable"):
        HostBackend(memoryview(bytes(10)), 1)


def test_closing_cancels_what_runs_and_lets_go_of_the_arena() -> None:
    depot = Depot()
    engine = Engine(("LBNHC", Shape(num_layers=16, num_heads=16)))
    buffer = depot.attach(engine)
    copies = depot.random_copies(engine, 1) * 3000
    running = [buffer.store(copies), buffer.retrieve(copies)]
    depot.backend.close()
    for transfer in running:
        with pytest.raises(TransferCancelled):
            transfer.future.result(0)
    depot.l1.clear()  # a BufferError as long as anyone exports it
    depot.close()
