"""What every kind of store does, against its real server."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from service.tiers.store import Part, Role, Store, StoreError, StoreFull
from tests.fakes.waiting import wait_until
from tests.service.tiers.stores.chunks import (
    KIB,
    MIB,
    Chunks,
    error_of_write,
    has_poison,
    read,
    same_bytes,
    write,
)
from tests.service.tiers.stores.kinds import Kind, OpenStore, StoreUnderTest, each

PATIENCE_SECONDS = 0.3


def has_server(kind: Kind) -> bool:
    return kind.has_server


@each()
@pytest.mark.parametrize("chunk_bytes", [1, 4 * KIB, 5_000, 64 * KIB, 8 * MIB, 64 * MIB])
def test_a_chunk_is_read_as_it_was_written(chunks: Chunks, reader: Store, writer: Store, chunk_bytes: int) -> None:
    written = chunks.new(chunk_bytes)
    write(writer, written)
    part = chunks.to_read(written)
    [record] = read(reader, part)
    assert record is not None
    assert chunks.record(record, part) == chunks.record(written.record, written)
    assert same_bytes(part, written)
    chunks.assert_nothing_was_written_around(part)


@each()
def test_the_bytes_behind_a_chunk_in_its_slot_are_not_the_chunks(chunks: Chunks, reader: Store, writer: Store) -> None:
    written = chunks.new(5_000, slot_bytes=64 * KIB)
    write(writer, written)
    part = chunks.to_read(written)
    assert read(reader, part) != [None]
    assert same_bytes(part, written)
    chunks.assert_nothing_was_written_around(part)


@each()
def test_a_chunk_that_was_never_written_is_absent(chunks: Chunks, reader: Store) -> None:
    assert read(reader, chunks.to_read(chunks.new(64 * KIB))) == [None]


@each(lambda kind: not kind.is_local)
def test_a_store_knows_which_chunks_it_has(chunks: Chunks, asker: Store, writer: Store) -> None:
    parts = [chunks.new(4 * KIB) for _ in range(64)]
    write(writer, *parts[::3])
    assert list(asker.exists([part.place.name for part in parts])) == [number % 3 == 0 for number in range(64)]


@each()
@pytest.mark.parametrize("asked_bytes", [4 * KIB, 64 * KIB - 8, 64 * KIB + 8, 128 * KIB])
def test_a_chunk_of_another_length_is_absent(chunks: Chunks, reader: Store, writer: Store, asked_bytes: int) -> None:
    written = chunks.new(64 * KIB, slot_bytes=128 * KIB)
    write(writer, written)
    part = chunks.to_read(written, asked_bytes)
    assert read(reader, part) == [None]
    chunks.assert_nothing_was_written_around(part)
    assert read(reader, chunks.to_read(written)) != [None]


@each()
def test_a_chunk_that_was_deleted_is_absent(chunks: Chunks, reader: Store, writer: Store) -> None:
    kept, deleted, absent = (chunks.new(64 * KIB) for _ in range(3))
    write(writer, kept, deleted)
    writer.delete([deleted.place, absent.place])
    writer.delete([deleted.place])
    assert [record is None for record in read(reader, chunks.to_read(kept), chunks.to_read(deleted))] == [False, True]


@each(lambda kind: not kind.is_local)
def test_a_store_knows_that_a_chunk_was_deleted(chunks: Chunks, asker: Store, writer: Store) -> None:
    written = chunks.new(4 * KIB)
    write(writer, written)
    writer.delete([written.place])
    assert list(asker.exists([written.place.name])) == [False]


@each()
def test_a_batch_has_one_result_for_each_chunk(chunks: Chunks, reader: Store, writer: Store) -> None:
    written = [chunks.new(chunk_bytes) for chunk_bytes in (64 * KIB, 4 * KIB, 1 * MIB, 5_000, 64 * KIB, 2 * MIB)]
    write(writer, *written[:3], *written[4:])
    parts = [chunks.to_read(part) for part in written]
    records = read(reader, *parts)
    assert [record is None for record in records] == [number == 3 for number in range(6)]
    assert all(same_bytes(parts[number], written[number]) for number in (0, 1, 2, 4, 5))


@each()
def test_a_batch_of_nothing_has_no_results(open_store: OpenStore) -> None:
    assert read(open_store(Role.READ)) == []
    write(open_store(Role.WRITE))
    open_store(Role.WRITE).delete([])
    assert list(open_store(Role.ASK).exists([])) == []


@each()
def test_the_last_version_of_a_chunk_is_read(chunks: Chunks, reader: Store, writer: Store) -> None:
    first = chunks.new(64 * KIB)
    second = chunks.another_version(first)
    write(writer, first)
    write(writer, second)
    part = chunks.to_read(second)
    [record] = read(reader, part)
    assert record is not None
    assert chunks.record(record, part) == chunks.record(second.record, second)
    assert same_bytes(part, second)


@each()
def test_a_batch_that_is_left_early_disturbs_no_later_one(chunks: Chunks, reader: Store, writer: Store) -> None:
    written = [chunks.new(1 * MIB) for _ in range(4)]
    write(writer, *written)
    left = [chunks.to_read(part) for part in written]
    next(reader.read_into(left))
    left_behind = [bytes(part.slot) for part in left]
    parts = [chunks.to_read(part) for part in written]
    assert None not in read(reader, *parts)
    assert all(same_bytes(part, each_written) for part, each_written in zip(parts, written, strict=True))
    assert [bytes(part.slot) for part in left] == left_behind


@each()
def test_a_changed_bit_comes_with_the_record_that_shows_it(
    chunks: Chunks, under_test: StoreUnderTest, reader: Store, writer: Store
) -> None:
    written = chunks.new(64 * KIB)
    write(writer, written)
    under_test.flip_bit(written.place, at_bytes=40_000)
    part = chunks.to_read(written)
    [record] = read(reader, part)
    assert record is not None
    assert chunks.record(record, part) == chunks.record(written.record, written)
    differences = np.frombuffer(part.data, np.uint8) ^ np.frombuffer(written.data, np.uint8)
    assert np.flatnonzero(differences).tolist() == [40_000]
    assert int(differences[40_000]).bit_count() == 1


@each(lambda kind: kind.refuses_when_full)
def test_a_full_store_refuses_a_chunk_and_keeps_the_others(
    chunks: Chunks, under_test: StoreUnderTest, reader: Store, writer: Store
) -> None:
    kept, refused = chunks.new(64 * KIB), chunks.new(1 * MIB)
    write(writer, kept)
    with under_test.filled():
        assert isinstance(error_of_write(writer, refused), StoreFull)
        assert read(reader, chunks.to_read(refused)) == [None]
        assert read(reader, chunks.to_read(kept)) != [None]
    write(writer, refused)
    assert read(reader, chunks.to_read(refused)) != [None]


@each()
def test_chunks_stay_when_a_store_is_closed(chunks: Chunks, under_test: StoreUnderTest, l1: memoryview) -> None:
    written = chunks.new(64 * KIB)
    first = under_test.open(Role.WRITE, l1)
    write(first, written)
    first.close()
    second = under_test.open(Role.READ, l1)
    with contextlib.closing(second):
        part = chunks.to_read(written)
        assert read(second, part) != [None]
        assert same_bytes(part, written)


@each(lambda kind: kind.is_local)
def test_a_scan_finds_the_chunks_that_are_there(chunks: Chunks, writer: Store) -> None:
    kept, deleted = chunks.new(5_000), chunks.new(64 * KIB)
    write(writer, kept, deleted)
    writer.delete([deleted.place])
    records = dict(writer.scan())
    assert deleted.place not in records
    assert chunks.record(records[kept.place], kept) == chunks.record(kept.record, kept)


@each(has_server)
def test_a_store_whose_server_is_dead_fails_and_recovers_with_it(
    chunks: Chunks, under_test: StoreUnderTest, asker: Store, reader: Store, writer: Store
) -> None:
    written = chunks.new(64 * KIB)
    part = chunks.to_read(written)
    write(writer, written)
    assert read(reader, part) != [None]
    with under_test.dead():
        assert error_of_write(writer, written) is not None
        with pytest.raises(StoreError):
            read(reader, part)
        with pytest.raises(StoreError):
            list(asker.exists([written.place.name]))
    wait_until(lambda: error_of_write(writer, written) is None)
    wait_until(lambda: answers_that_it_has(asker, written.place.name))
    wait_until(lambda: reads(reader, part, written))


@each(has_server)
def test_chunks_that_a_server_forgot_are_absent(
    chunks: Chunks, under_test: StoreUnderTest, reader: Store, writer: Store
) -> None:
    written = chunks.new(64 * KIB)
    write(writer, written)
    with under_test.dead():
        pass
    another = chunks.new(4 * KIB)
    wait_until(lambda: error_of_write(writer, another) is None)
    assert read(reader, chunks.to_read(written)) == [None]


@each(has_server)
def test_a_store_whose_server_does_not_answer_fails_and_recovers_with_it(
    chunks: Chunks, under_test: StoreUnderTest, open_store: OpenStore
) -> None:
    asker, reader, writer = (
        open_store(role, patience_seconds=PATIENCE_SECONDS) for role in (Role.ASK, Role.READ, Role.WRITE)
    )
    written = chunks.new(64 * KIB)
    write(writer, written)
    part = chunks.to_read(written)
    with under_test.paused():
        with pytest.raises(StoreError):
            list(asker.exists([written.place.name]))
        with pytest.raises(StoreError):
            read(reader, part)
        assert error_of_write(writer, written) is not None
        assert has_poison(part)
    wait_until(lambda: answers_that_it_has(asker, written.place.name))
    wait_until(lambda: reads(reader, part, written))
    wait_until(lambda: error_of_write(writer, written) is None)


def answers_that_it_has(store: Store, name: bytes) -> bool:
    with contextlib.suppress(StoreError):
        return list(store.exists([name])) == [True]
    return False


def reads(store: Store, part: Part, written: Part) -> bool:
    with contextlib.suppress(StoreError):
        return read(store, part) != [None] and same_bytes(part, written)
    return False
