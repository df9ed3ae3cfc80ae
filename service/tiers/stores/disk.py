"""The disk store: chunks in one large file, past the page cache, and their records in another one.

A write erases the records of what its place held, writes the bytes, and then the record. So a process that is killed
at any moment leaves no record of bytes that are not there. Nothing waits for the disk to have it: a loss of power may
leave records whose bytes are missing, and the I/O worker notices these as damaged.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path

from service.tiers.disk.disk_layout import ALIGNMENT_BYTES, DiskLayout
from service.tiers.record import RECORD_BYTES
from service.tiers.store import Capabilities, Part, Place, Role, StoreContext, StoreError, StoreFull
from service.tiers.stores.disk_files import open_files
from service.tiers.stores.disk_records import DiskRecords

logger = logging.getLogger(__name__)

NUM_THREADS = 4
PIECE_BYTES = 4 << 20
"""Of a chunk that one thread moves at a time."""
SYNC_SECONDS = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Where a record has them.
_KEY = slice(8, 40)
_CHUNK_BYTES = slice(40, 48)

Transfer = Callable[[int, list[memoryview], int], int]


class DiskStore:
    """The store of a folder of a local file system. Several processes of one depot may have it open.

    Raises: StoreError: another depot has it open. StoreUnusable.
    """

    capabilities = Capabilities(is_local=True)

    def __init__(self, context: StoreContext) -> None:
        layout = DiskLayout.of(context.address)
        self._role = context.role
        self._folder = Path(context.address.path)
        self._files = open_files(self._folder, layout)
        self._records = DiskRecords(self._files.records_fd, self._files.file_id, layout.num_records)
        self._chunks_bytes = layout.chunks_bytes
        self._threads = ThreadPoolExecutor(NUM_THREADS, "disk")
        self._sync: Future[None] | None = None
        self._sync_time = time.monotonic()

    def exists(self, names: Sequence[bytes]) -> Sequence[bool]:
        """Return False for each name: the index of the depot knows what there is. This tries whether the disk works."""
        try:
            if self._files.is_deleted():
                raise StoreError(f"{self._folder}: its files were deleted")
            os.pread(self._files.records_fd, ALIGNMENT_BYTES, 0)
        except OSError as error:
            raise self._failure(error) from error
        return [False] * len(names)

    def read_into(self, parts: Sequence[Part]) -> Iterator[tuple[int, bytes | None]]:
        """Read chunks, several at a time. A chunk whose record names another place or length is absent."""
        try:
            for move in self._moved(os.preadv, self._found(parts)):
                if move.is_whole:
                    self._records.note_use(move.place.record_number)
                yield move.number, move.record if move.is_whole else None
        except OSError as error:
            raise self._failure(error) from error

    def write_from(self, parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        """Write chunks, several at a time, each after the records of its place are erased."""
        try:
            if self._files.is_deleted():
                raise StoreError(f"{self._folder}: its files were deleted")
            for move in self._moved(os.pwritev, self._erased(parts)):
                if move.error is not None:
                    yield move.number, StoreFull(f"{self._folder}: {move.error.strerror}")
                    continue
                if not move.is_whole:
                    yield move.number, StoreError(f"{self._folder}: a chunk does not fit its place {move.place}")
                    continue
                place = move.place
                self._records.write(place.record_number, move.record, place.offset_bytes, place.slot_bytes)
                yield move.number, None
            self._sync_now_and_then()
        except OSError as error:
            raise self._failure(error) from error

    def delete(self, places: Sequence[Place]) -> None:
        """Erase the records of chunks, unless the records are of other chunks by now."""
        try:
            for place in places:
                found = self._records.read(place.record_number)
                if found is not None and found[0][_KEY] == place.name:
                    self._records.erase(place.record_number)
        except OSError as error:
            raise self._failure(error) from error

    def scan(self) -> Iterable[tuple[Place, bytes]]:
        """Yield all chunks that lie inside of the tier, least recently used first."""
        try:
            for number in self._records.used():
                found = self._records.read(number)
                if found is None:
                    continue
                record, offset_bytes, slot_bytes = found
                if offset_bytes + slot_bytes > self._chunks_bytes:
                    self._records.erase(number)  # the tier was larger, and must not find it if it grows again
                else:
                    yield Place(record[_KEY], offset_bytes, slot_bytes, number), record
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Have the disk write what it was given, and close the files."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._role is Role.WRITE:
            try:
                os.fdatasync(self._files.chunks_fd)
                os.fdatasync(self._files.records_fd)
            except OSError as error:
                logger.warning("disk tier not synced: %s", error)
        self._files.close()

    def _found(self, parts: Sequence[Part]) -> Iterator[_Move]:
        """Yield the parts, without bytes where no record names their place and length."""
        for number, part in enumerate(parts):
            record, *where = self._records.read(part.place.record_number) or (bytes(RECORD_BYTES), 0, 0)
            num_bytes = _aligned(part.chunk_bytes)
            is_there = (record[_KEY], *where) == part.place[:3] and num_bytes <= part.place.slot_bytes
            if is_there and int.from_bytes(record[_CHUNK_BYTES], "little") == part.chunk_bytes:
                yield _Move(number, part.place, record, part.slot[:num_bytes])
            else:
                yield _Move(number, part.place, record)

    def _erased(self, parts: Iterable[Part]) -> Iterator[_Move]:
        """Yield the parts after no record names a byte of their places any more, without bytes if they do not fit."""
        for number, part in enumerate(parts):
            place, num_bytes = part.place, _aligned(part.chunk_bytes)
            if num_bytes > place.slot_bytes or place.offset_bytes + place.slot_bytes > self._chunks_bytes:
                yield _Move(number, place, part.record)
            else:
                self._erase_stale(place)
                yield _Move(number, place, part.record, part.slot[:num_bytes])

    def _moved(self, call: Transfer, moves: Iterator[_Move]) -> Iterator[_Move]:
        """Move the bytes of chunks in the threads, large chunks in pieces. Yield each chunk when all of it has moved.

        What fails is raised after all others are done.
        """
        failed: OSError | None = None
        move_of: dict[Future[bool], _Move] = {}
        try:
            try:
                for move in moves:
                    for begin in range(0, len(move.data), PIECE_BYTES):
                        piece, offset_bytes = move.data[begin : begin + PIECE_BYTES], move.place.offset_bytes + begin
                        move_of[self._threads.submit(self._transfer, call, piece, offset_bytes)] = move
                        move.num_waiting += 1
                    if not move.num_waiting:
                        yield move
            except OSError as error:
                failed = error
            for future in as_completed(move_of):
                move = move_of[future]
                move.num_waiting -= 1
                try:
                    move.is_whole &= future.result()
                except OSError as error:
                    move.is_whole = False
                    if move.error is None or move.error.errno in _FULL:  # a broken disk counts more than a full one
                        move.error = error
                if move.num_waiting:
                    continue
                if move.error is None or move.error.errno in _FULL:
                    yield move
                else:
                    failed = move.error
        finally:
            wait(move_of)  # no thread touches a slot of L1 after this
        if failed is not None:
            raise failed

    def _erase_stale(self, place: Place) -> None:
        """Erase the place's own record, and others that name some of its bytes.

        One of these may be another part's own by now, and that part may be written at the same time. Its record was
        erased before, and names other bytes once it is written, so it stays.
        """
        self._records.erase(place.record_number)
        for number in place.stale_records:
            found = self._records.read(number)
            if found is not None and _overlap(found[1], found[2], place):
                self._records.erase(number)

    def _transfer(self, call: Transfer, data: memoryview, offset_bytes: int) -> bool:
        """Move all bytes between memory and disk. Return False if the file ends before."""
        num_done = 0
        while num_done < len(data):
            try:
                num_moved = call(self._files.chunks_fd, [data[num_done:]], offset_bytes + num_done)
            except OSError as error:
                if error.errno == errno.EINVAL and self._files.is_direct:
                    self._files.stop_direct()
                    logger.warning("disk tier without O_DIRECT: %s", self._folder)
                    continue
                raise
            if num_moved == 0:
                return False
            num_done += num_moved
        if not self._files.is_direct:
            os.posix_fadvise(self._files.chunks_fd, offset_bytes, len(data), os.POSIX_FADV_DONTNEED)
        return True

    def _sync_now_and_then(self) -> None:
        """Have the disk write what it was given, while other calls go on. After a loss of power, less is lost then."""
        if time.monotonic() < self._sync_time + SYNC_SECONDS or (self._sync is not None and not self._sync.done()):
            return
        self._sync_time = time.monotonic()
        self._sync = self._threads.submit(os.fdatasync, self._files.records_fd)

    def _failure(self, error: OSError) -> StoreError:
        return StoreError(f"{self._folder}: {error.strerror}")


class _Move:
    """A chunk that moves: the part with this number. `data` is None if it can't."""

    def __init__(self, number: int, place: Place, record: bytes, data: memoryview | None = None) -> None:
        self.number = number
        self.place = place
        self.record = record
        self.data = data or memoryview(b"")
        self.num_waiting = 0
        """Its pieces that have not moved yet."""
        self.is_whole = data is not None
        self.error: OSError | None = None


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _overlap(offset_bytes: int, size_bytes: int, place: Place) -> bool:
    return offset_bytes < place.offset_bytes + place.slot_bytes and place.offset_bytes < offset_bytes + size_bytes
