"""The file of records of a disk tier: a header of 4,096 bytes, and entries of 256 bytes.

An entry has the record of a chunk and the place of its bytes. Its sum covers its own number and the id of the file: an
entry that was torn, moved, or left over from another file is none. It also has the time of the last read, which its sum
does not cover, because a wrong one does no harm.

All processes use this file through the page cache. So each sees at once what another one wrote, also if that was
killed. After a loss of power the disk may have some of it: entries that are there name the checksum of their bytes.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from service.tiers.disk.disk_layout import ENTRY_BYTES, HEADER_BYTES
from service.tiers.record import RECORD_BYTES

FORMAT = 1
MAGIC = b"kvdepot disk L2\n"
_HEADER = struct.Struct("<16sI32s")
_PLACE = struct.Struct("<QQ")
_NUMBER = struct.Struct("<Q")
_SUM_BYTES = 16
_SUM_OFFSET = RECORD_BYTES + _PLACE.size
_LAST_USE_OFFSET = _SUM_OFFSET + _SUM_BYTES
_ERASED = bytes(ENTRY_BYTES)
_PIECE_ENTRIES = 16_384
_SECOND_NS = np.uint64(1_000_000_000)


def new_header(file_id: bytes) -> bytes:
    """Return the header of a file with this id of 32 bytes."""
    body = _HEADER.pack(MAGIC, FORMAT, file_id)
    return body + blake3(body).digest()


def file_id_of(header: bytes) -> bytes | None:
    """Return the id of a file. None: the header is damaged, or of another format."""
    body, own_sum = header[: _HEADER.size], header[_HEADER.size : _HEADER.size + 32]
    if blake3(body).digest() != own_sum:
        return None
    magic, number, file_id = _HEADER.unpack(body)
    return file_id if (magic, number) == (MAGIC, FORMAT) else None


class DiskRecords:
    """The entries of an open file. Calls raise OSError."""

    def __init__(self, fd: int, file_id: bytes, num_records: int) -> None:
        self._fd = fd
        self._file_id = file_id
        self._num_records = num_records

    def read(self, number: int) -> tuple[bytes, int, int] | None:
        """Return the record of 128 bytes, the offset and the size of the slot. None: there is no such entry."""
        entry = os.pread(self._fd, ENTRY_BYTES, self._start(number))
        if len(entry) < ENTRY_BYTES or self._sum(number, entry[:_SUM_OFFSET]) != entry[_SUM_OFFSET:_LAST_USE_OFFSET]:
            return None
        return entry[:RECORD_BYTES], *_PLACE.unpack_from(entry, RECORD_BYTES)

    def write(self, number: int, record: bytes, offset_bytes: int, slot_bytes: int) -> None:
        """Write an entry. Its chunk counts as used now."""
        body = record + _PLACE.pack(offset_bytes, slot_bytes)
        entry = body + self._sum(number, body) + _NUMBER.pack(time.time_ns())
        os.pwrite(self._fd, entry, self._start(number))

    def erase(self, number: int) -> None:
        """Erase an entry, whatever it has."""
        os.pwrite(self._fd, _ERASED, self._start(number))

    def note_use(self, number: int) -> None:
        """Write that the chunk of an entry is used now."""
        os.pwrite(self._fd, _NUMBER.pack(time.time_ns()), self._start(number) + _LAST_USE_OFFSET)

    def used(self) -> Iterator[int]:
        """Yield the numbers of the entries that were written and not erased, least recently used first.

        Of those that were used in one second, the last one comes first: the chunks of a prefix are used head first,
        and a tail is worth nothing without its head.
        """
        numbers: list[NDArray[np.int64]] = []
        last_uses: list[NDArray[np.uint64]] = []
        for first, end in self._written():
            for begin in range(first, end, _PIECE_ENTRIES):
                num_bytes = min(_PIECE_ENTRIES, end - begin) * ENTRY_BYTES
                data = os.pread(self._fd, num_bytes, self._start(begin))
                data = data[: len(data) // ENTRY_BYTES * ENTRY_BYTES]
                words = np.frombuffer(data, dtype="<u8").reshape(-1, ENTRY_BYTES // 8)
                some = np.flatnonzero(words[:, : _SUM_OFFSET // 8].any(axis=1))
                numbers.append(some + begin)
                last_uses.append(words[some, _LAST_USE_OFFSET // 8])
        if numbers:
            times = np.concatenate(last_uses)
            order = np.lexsort((~times, times // _SECOND_NS))
            yield from np.concatenate(numbers)[order].tolist()

    def _written(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of entries that have all that were ever written. Reserved space that was not is left out."""
        end_bytes = self._start(self._num_records)
        position = HEADER_BYTES
        while position < end_bytes:
            try:
                position = os.lseek(self._fd, position, os.SEEK_DATA)
                hole = min(os.lseek(self._fd, position, os.SEEK_HOLE), end_bytes)
            except OSError as error:
                if error.errno != errno.ENXIO:  # ENXIO: all from here on is a hole
                    raise
                return
            yield (position - HEADER_BYTES) // ENTRY_BYTES, -(-(hole - HEADER_BYTES) // ENTRY_BYTES)
            position = hole

    def _start(self, number: int) -> int:
        return HEADER_BYTES + number * ENTRY_BYTES

    def _sum(self, number: int, body: bytes) -> bytes:
        return blake3(_NUMBER.pack(number) + body, key=self._file_id).digest(_SUM_BYTES)
