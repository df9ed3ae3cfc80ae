"""Checksums of whole chunks come with each transfer: for any layout, any last blocks, and each kind of copy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.checksum import kvsum64
from kernels.copies import ChunkCopy
from kernels.host import buffer
from kernels.host.backend import HostBackend
from kernels.host.streaming_copy import Copy, StreamingCopy, built_library
from kernels.host.system_copy import SystemCopy
from tests.kernels.host.test_copy_pool import SECONDS
from tests.kernels.reference import KV_LAYOUTS, LATENT_LAYOUTS, Engine, Shape, without_first

CHUNK_SIZE = 12
NUM_CHUNKS = 2
L1_BYTES = 1 << 20


def system_copy() -> Copy:
    return SystemCopy()


def streaming_copy(level: int) -> Callable[[], Copy]:
    return lambda: StreamingCopy(built_library(), level)


COPIES = {
    "memcpy": streaming_copy(0),
    "SSE2": streaming_copy(1),
    "AVX2": streaming_copy(2),
    "AVX-512": streaming_copy(3),
    "system": system_copy,
}


@pytest.fixture(scope="module", params=COPIES)
def copy(request: pytest.FixtureRequest) -> Copy:
    if list(COPIES).index(request.param) > StreamingCopy(built_library()).level and request.param != "system":
        pytest.skip("this processor does not have it")
    return COPIES[request.param]()


@pytest.fixture
def l1() -> bytearray:
    return bytearray(np.random.default_rng(11).bytes(L1_BYTES))


@pytest.fixture
def backend(l1: bytearray, copy: Copy) -> Iterator[HostBackend]:
    backend = HostBackend(memoryview(l1), 2, copy)
    yield backend
    backend.close()


SHAPES = st.builds(
    Shape,
    num_layers=st.integers(1, 4),
    num_blocks=st.just(24),
    block_size=st.sampled_from([1, 2, 4, 6, 12]),
    num_heads=st.integers(1, 3),
    head_size=st.sampled_from([1, 4, 7, 8, 16, 40, 96, 128]),
    dtype=st.sampled_from(["uint8", "uint16", "uint32"]),
)


@st.composite
def groups(draw: st.DrawFn) -> list[tuple[str, Shape]]:
    names = st.sampled_from([*KV_LAYOUTS, *LATENT_LAYOUTS])
    return [(draw(names), draw(SHAPES)) for _ in range(draw(st.integers(1, 2)))]


@settings(max_examples=25)
@given(
    layouts=groups(),
    data=st.data(),
    gap_bytes=st.sampled_from([0, 3, 8]),
    piece_bytes=st.sampled_from([72, 1000, 1 << 20]),
    with_checksum=st.lists(st.booleans(), min_size=NUM_CHUNKS, max_size=NUM_CHUNKS),
    seed=st.integers(0, 99),
)
def test_a_transfer_has_the_checksums_of_the_chunks_in_l1(
    copy: Copy,
    layouts: list[tuple[str, Shape]],
    data: st.DataObject,
    gap_bytes: int,
    piece_bytes: int,
    with_checksum: list[bool],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    l1 = bytearray(rng.bytes(L1_BYTES))
    engine = Engine(*layouts, rng=rng)
    chunk_bytes = CHUNK_SIZE * sum(group.token_bytes for group in engine.groups)
    copies = []
    for number in range(NUM_CHUNKS):
        tables = [rng.permutation(group.num_blocks)[: CHUNK_SIZE // group.block_size] for group in engine.groups]
        skip = [data.draw(st.integers(0, len(t))) * g.block_size for t, g in zip(tables, engine.groups, strict=True)]
        copies.append(
            ChunkCopy(
                l1_offset_bytes=gap_bytes + number * (chunk_bytes + gap_bytes),
                block_ids=without_first(tables, engine.groups, skip),
                with_checksum=with_checksum[number],
            )
        )
    backend = HostBackend(memoryview(l1), 2, copy)
    attached = backend.attach(engine.groups, engine.regions, CHUNK_SIZE, allow_process_fd=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffer, "_MIN_PIECE_BYTES", piece_bytes)
        patch.setattr(buffer, "_MAX_PIECE_BYTES", piece_bytes)
        expected_l1 = bytearray(l1)
        for each in copies:
            at = slice(each.l1_offset_bytes, each.l1_offset_bytes + chunk_bytes)
            expected_l1[at] = engine.read_chunk(each.block_ids, bytes(expected_l1[at]))
        for start in (attached.store, attached.retrieve):
            transfer = start(copies)
            transfer.future.result(SECONDS)
            assert l1 == expected_l1
            assert transfer.checksums.tolist() == checksums(l1, copies, chunk_bytes)
    for each in copies:
        at = slice(each.l1_offset_bytes, each.l1_offset_bytes + chunk_bytes)
        assert engine.read_chunk(each.block_ids, bytes(l1[at])) == l1[at]
    backend.close()
    attached.close()
    engine.close()


def checksums(l1: bytearray, copies: Sequence[ChunkCopy], chunk_bytes: int) -> list[int]:
    """Return the checksums as a second pass over L1 computes them; 0 for copies that have none."""
    return [
        kvsum64(memoryview(l1)[copy.l1_offset_bytes : copy.l1_offset_bytes + chunk_bytes]) if copy.with_checksum else 0
        for copy in copies
    ]


@pytest.mark.parametrize(("head_size", "l1_offset_bytes"), [(16_384, 0), (16_384, 3), (16_383, 0)])
def test_memory_that_changes_during_a_store_has_the_checksum_of_what_was_stored(
    copy: Copy, head_size: int, l1_offset_bytes: int
) -> None:
    """The second chunk's words lie askew to lines, and the third's are not copied whole."""
    l1 = bytearray(4 << 20)
    backend = HostBackend(memoryview(l1), 2, copy)
    shape = Shape(num_layers=4, num_blocks=3, block_size=4, num_heads=2, head_size=head_size, dtype="uint8")
    engine = Engine(("NL_X_TWO_NB_BS_NH_HS", shape))
    attached = backend.attach(engine.groups, engine.regions, CHUNK_SIZE, allow_process_fd=True)
    copies = [ChunkCopy(l1_offset_bytes=l1_offset_bytes, block_ids=(np.array([2, 0, 1]),), with_checksum=True)]
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for memory in engine._memory:
                memory.bytes[:] = number % 251

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(20):
            transfer = attached.store(copies)
            transfer.future.result(SECONDS)
            assert transfer.checksums.tolist() == checksums(l1, copies, attached.chunk_bytes)
    finally:
        stop.set()
        changing.join()
        backend.close()
        attached.close()
        engine.close()


def test_a_range_of_l1_has_the_checksum_of_a_chunk_and_pieces_add_up(l1: bytearray, backend: HostBackend) -> None:
    chunk = memoryview(l1)[4096 : 4096 + 70_003]
    assert backend.checksum_part(4096, len(chunk), 0) == kvsum64(chunk)
    parts = [
        backend.checksum_part(4096 + begin, min(1000, len(chunk) - begin), begin) for begin in range(0, 70_003, 1000)
    ]
    assert sum(parts) % 2**64 == kvsum64(chunk)
    assert backend.checksum_part(77, 0, 8) == 0


@pytest.mark.parametrize(
    ("l1_offset_bytes", "size_bytes", "chunk_offset_bytes"),
    [(-1, 8, 0), (0, -8, 0), (0, L1_BYTES + 1, 0), (L1_BYTES, 1, 0), (0, 8, 4)],
)
def test_what_is_not_in_l1_or_begins_inside_a_word_has_no_checksum(
    backend: HostBackend, l1_offset_bytes: int, size_bytes: int, chunk_offset_bytes: int
) -> None:
    with pytest.raises(ValueError):
        backend.checksum_part(l1_offset_bytes, size_bytes, chunk_offset_bytes)
