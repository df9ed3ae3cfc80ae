"""The disk store on real files: what is written comes back, and what is doubtful is absent."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import time
from pathlib import Path

import pytest

from kernels.checksum import kvsum64
from service.tiers.record import ChunkRecord
from service.tiers.store import Part, Role, StoreError, StoreFull
from service.tiers.stores import disk
from tests.fakes.disk_tier import OWNER, A, B, C, DiskTier, bytes_of, keys, opened, write

KIB = 1 << 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tier"


@pytest.mark.parametrize("num_bytes", [1, 4 * KIB, 4 * KIB + 1, 100_000, 1 << 20, 64 << 20])
def test_a_chunk_of_any_size_comes_back(folder: Path, num_bytes: int) -> None:
    with opened(folder, "80MiB", l1_bytes=65 << 20) as tier:
        write(tier, {A: num_bytes})
        assert tier.get(A, num_bytes) == bytes_of(A, num_bytes)


def test_chunks_come_back_after_a_restart_in_the_order_of_their_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count(1_000)
    monkeypatch.setattr(time, "time_ns", lambda: next(seconds) * 10**9)
    with opened(folder) as tier:
        for key in (A, B, C):
            write(tier, {key: 100_000})
        assert tier.get(A, 100_000) is not None
    with opened(folder) as tier:
        assert [place.name for place, _ in tier.store.scan()] == [B, C, A]
        for key in (A, B, C):
            assert tier.get(key, 100_000) == bytes_of(key, 100_000)


def test_of_chunks_that_were_used_in_one_second_the_last_comes_first_after_a_restart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    milliseconds = itertools.count(0)
    monkeypatch.setattr(time, "time_ns", lambda: next(milliseconds) * 10**6)
    with opened(folder) as tier:
        for key in (A, B, C):
            write(tier, {key: 5_000})
    with opened(folder) as tier:
        assert [place.name for place, _ in tier.store.scan()] == [C, B, A]


def test_a_batch_of_many_sizes_comes_back(folder: Path) -> None:
    sizes = {key: 1 + 7_919 * number for number, key in enumerate(keys(20))}
    with opened(folder) as tier:
        write(tier, sizes)
        for key, num_bytes in sizes.items():
            assert tier.get(key, num_bytes) == bytes_of(key, num_bytes)


def test_a_chunk_is_absent_if_its_record_says_another_key_or_place(folder: Path) -> None:
    with opened(folder) as tier:
        write(tier, {A: 5_000, B: 5_000})
        place = tier.index.get(A)
        assert place is not None
        for wrong in (
            place._replace(name=B),
            place._replace(offset_bytes=place.offset_bytes + 8_192),
            place._replace(slot_bytes=4_096),
            place._replace(record_number=place.record_number + 1),
            place._replace(record_number=1_000),
            place._replace(record_number=1 << 40),
        ):
            assert set(tier.read([wrong], 4_096).values()) == {None}


def test_a_longer_chunk_than_the_slot_is_absent_and_is_not_written(folder: Path) -> None:
    with opened(folder) as tier:
        write(tier, {A: 4_096})
        place = tier.index.get(A)
        assert place is not None
        assert tier.read([place], 4_097) == {A: None}
        record = ChunkRecord(A, 4_097, 0, 0, OWNER).pack()
        [(number, error)] = tier.store.write_from([Part(place, tier.memory[:8_192], 4_097, record)])
        assert number == 0 and isinstance(error, StoreError)


def test_another_process_reads_what_was_just_written(folder: Path) -> None:
    with opened(folder) as tier:
        reader = DiskTier(folder, role=Role.READ)
        for round_number in range(20):
            key = keys(20)[round_number]
            write(tier, {key: 10_000})
            place = tier.index.get(key)
            assert place is not None
            assert reader.read([place], 10_000) == {key: bytes_of(key, 10_000)}
            tier.index.remove(key)
        reader.store.close()


def test_a_deleted_chunk_stays_away_after_a_restart(folder: Path) -> None:
    with opened(folder) as tier:
        write(tier, {A: 5_000, B: 5_000})
        place = tier.index.remove(A)
        assert place is not None
        tier.store.delete([place])
        assert tier.read([place], 5_000) == {A: None}
    with opened(folder) as tier:
        assert tier.keys() == [B]


def test_a_late_deletion_spares_the_next_chunk_of_the_record(folder: Path) -> None:
    with opened(folder) as tier:
        write(tier, {A: 5_000})
        place = tier.index.remove(A)
        assert place is not None
        write(tier, {B: 5_000})
        tier.store.delete([place])
        assert tier.get(B, 5_000) == bytes_of(B, 5_000)


def test_a_large_chunk_voids_the_records_of_all_that_lay_there(folder: Path) -> None:
    num_bytes = 1 << 20
    with opened(folder) as tier:
        num_small = tier.index.capacity_bytes // 65_536
        for key in keys(num_small):
            write(tier, {key: 65_536})
        left = tier.keys()
        write(tier, {C: num_bytes})
        assert len(left) - len(tier.keys()) == 15
        left = tier.keys()
        numbers = {place.record_number for place, _ in tier.store.scan()}
        assert len(numbers) == len(left)
    with opened(folder) as tier:
        assert tier.keys() == left
        assert tier.get(C, num_bytes) == bytes_of(C, num_bytes)


def test_a_write_spares_records_that_name_none_of_its_bytes(folder: Path) -> None:
    with opened(folder) as tier:
        write(tier, {A: 5_000})
        place = tier.index.get(A)
        assert place is not None
        [part] = tier.parts_to_write({B: 5_000})
        late = part._replace(place=part.place._replace(stale_records=(place.record_number,)))
        assert dict(tier.store.write_from([late])) == {0: None}
        assert tier.get(A, 5_000) == bytes_of(A, 5_000)


@pytest.mark.parametrize("part", ["record", "place", "sum"])
def test_a_damaged_record_is_absent(folder: Path, part: str) -> None:
    with opened(folder) as tier:
        write(tier, {A: 5_000, B: 5_000})
        place = tier.index.get(A)
        assert place is not None
        offset = 4096 + place.record_number * 256 + {"record": 60, "place": 130, "sum": 150}[part]
        flip(folder / "records", offset)
        assert tier.read([place], 5_000) == {A: None}
    with opened(folder) as tier:
        assert tier.keys() == [B]


def test_damaged_bytes_do_not_match_their_record(folder: Path) -> None:
    with opened(folder) as tier:
        write(tier, {A: 50_000})
        place = tier.index.get(A)
        assert place is not None
    flip(folder / "chunks", place.offset_bytes + 30_000)
    with opened(folder) as tier:
        assert tier.get(A, 50_000) == b""


def flip(path: Path, offset: int) -> None:
    """Flip a bit of a file."""
    fd = os.open(path, os.O_RDWR)
    byte = os.pread(fd, 1, offset)[0]
    os.pwrite(fd, bytes([byte ^ 1]), offset)
    os.fsync(fd)
    os.close(fd)


def test_records_of_another_file_are_void(folder: Path, tmp_path: Path) -> None:
    for name in (folder, tmp_path / "other"):
        with opened(name) as tier:
            write(tier, {A: 5_000})
    entries = (tmp_path / "other" / "records").read_bytes()[4096:]
    with (folder / "records").open("r+b") as file:
        file.seek(4096)
        file.write(entries)
    with opened(folder) as tier:
        assert tier.keys() == []


def test_a_moved_record_is_void(folder: Path) -> None:
    with opened(folder) as tier:
        write(tier, {A: 5_000})
        with (folder / "records").open("r+b") as file:
            file.seek(4096)
            entry = file.read(256)
            file.seek(4096 + 7 * 256)
            file.write(entry)
        assert [place.record_number for place, _ in tier.store.scan()] == [0]


@pytest.mark.parametrize("damage", ["format", "sum"])
def test_a_header_of_another_format_starts_an_empty_tier(folder: Path, damage: str) -> None:
    with opened(folder) as tier:
        write(tier, {A: 5_000})
    flip(folder / "records", 16 if damage == "format" else 60)
    with opened(folder) as tier:
        assert tier.keys() == []
        write(tier, {B: 5_000})
    with opened(folder) as tier:
        assert tier.keys() == [B]


def test_files_that_were_deleted_are_noticed(folder: Path) -> None:
    with opened(folder) as tier:
        assert tier.store.exists([A, B]) == [False, False]
        (folder / "records").unlink()
        with pytest.raises(StoreError, match="its files were deleted"):
            tier.store.exists([A])
        with pytest.raises(StoreError, match="its files were deleted"):
            write(tier, {A: 5_000})


def test_a_file_that_was_cut_off_has_no_chunk_there(folder: Path) -> None:
    with opened(folder) as tier:
        write(tier, {A: 50_000})
        os.truncate(folder / "chunks", 4096)
        assert tier.get(A, 50_000) is None


def test_without_direct_reads_and_writes_chunks_come_back(folder: Path) -> None:
    with opened(folder) as tier:
        tier.store._files.stop_direct()
        write(tier, {A: 50_000})
        assert tier.get(A, 50_000) == bytes_of(A, 50_000)


def test_memory_that_the_disk_can_not_write_to_directly_is_read_into(folder: Path) -> None:
    with opened(folder) as tier:
        write(tier, {A: 4_096})
        place = tier.index.get(A)
        assert place is not None
        slot = tier.memory[100 : 100 + 4_096]
        [(_, record)] = tier.store.read_into([Part(place, slot, 4_096)])
        assert record is not None and kvsum64(slot) == kvsum64(memoryview(bytes_of(A, 4_096)))


def test_a_write_that_fails_leaves_the_others_of_its_batch(folder: Path) -> None:
    with opened(folder) as tier:
        parts = tier.parts_to_write({A: 5_000, B: 5_000, C: 5_000})
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (parts[2].place.offset_bytes, limits[1]))
        written: dict[int, StoreError | None] = {}
        try:
            with pytest.raises(StoreError, match="File too large"):
                written.update(tier.store.write_from(parts))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with opened(folder) as tier:
        assert tier.keys() == [A, B]


def test_a_disk_that_is_full_after_all_is_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(fd: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(folder) as tier:
        parts = tier.parts_to_write({A: 5_000})
        monkeypatch.setattr(os, "pwritev", no_space)
        [(number, error)] = tier.store.write_from(parts)
        assert number == 0 and isinstance(error, StoreFull)
        assert list(tier.store.scan()) == []


def test_a_chunk_of_which_a_piece_fails_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwritev
    monkeypatch.setattr(disk, "PIECE_BYTES", 8_192)

    def broken_at(offset_of_fault: int, code: int) -> None:
        def pwritev(fd: int, buffers: list[memoryview], offset: int) -> int:
            if offset == offset_of_fault:
                raise OSError(code, os.strerror(code))
            return write(fd, buffers, offset)

        monkeypatch.setattr(os, "pwritev", pwritev)

    with opened(folder) as tier:
        small, large, another = tier.parts_to_write({A: 5_000, B: 30_000, C: 30_000})
        broken_at(large.place.offset_bytes + 16_384, errno.EIO)
        with pytest.raises(StoreError, match="Input/output error"):
            list(tier.store.write_from([small, large, another]))
        assert {place.name for place, _ in tier.store.scan()} == {A, C}
        broken_at(large.place.offset_bytes + 16_384, errno.ENOSPC)
        [(_, error)] = tier.store.write_from([large])
        assert isinstance(error, StoreFull)
        assert {place.name for place, _ in tier.store.scan()} == {A, C}


def test_a_broken_disk_is_not_taken_for_a_full_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PIECE_BYTES", 16_384)

    def pwritev(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset % 32_768:
            time.sleep(0.05)  # so that this piece fails last
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(folder) as tier:
        parts = tier.parts_to_write({A: 30_000})
        monkeypatch.setattr(os, "pwritev", pwritev)
        with pytest.raises(StoreError, match="Input/output error"):
            list(tier.store.write_from(parts))


def test_a_chunk_in_pieces_comes_back_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PIECE_BYTES", 8_192)
    with opened(folder) as tier:
        assert list(tier.write({A: 30_000})) == [A]
        assert tier.get(A, 30_000) == bytes_of(A, 30_000)
        read = os.preadv

        def ends_early(fd: int, buffers: list[memoryview], offset: int) -> int:
            return 0 if offset % 32_768 == 16_384 else read(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", ends_early)
        assert tier.get(A, 30_000) is None


def test_a_chunk_of_which_a_piece_can_not_be_read_is_absent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PIECE_BYTES", 8_192)
    with opened(folder) as tier:
        write(tier, {A: 30_000})
        tier.memory[:] = bytes(len(tier.memory))
        read = os.preadv

        def fails_in_the_middle(fd: int, buffers: list[memoryview], offset: int) -> int:
            if offset % 32_768 == 16_384:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            return read(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", fails_in_the_middle)
        assert tier.get(A, 30_000) is None


def test_a_job_that_fails_ends_after_all_its_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as tier:
        write(tier, {A: 5_000, B: 5_000})
        places = [place for key in (A, B) if (place := tier.index.get(key)) is not None]
        read, ended = os.preadv, []

        def one_is_slow(fd: int, buffers: list[memoryview], offset: int) -> int:
            time.sleep(0.2 if offset == places[1].offset_bytes else 0.0)
            ended.append(offset)
            return read(fd, buffers, offset)

        def fails(number: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", one_is_slow)
        monkeypatch.setattr(tier.store._records, "note_use", fails)
        with pytest.raises(StoreError, match="Input/output error"):
            tier.read(places, 5_000)
        assert len(ended) == 2, "the depot gives the slots to others now"
