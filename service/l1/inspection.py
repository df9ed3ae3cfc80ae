"""What an L1 file holds, read without a change to it, also while a depot uses it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from service.l1.file_use import is_l1, is_locked, last_pid, read_start
from service.l1.format import CELL_BYTES, HEADER_BYTES, RECORD_BYTES, Header, Layout
from service.l1.l1_file import L1FileUnusable, open_refusal
from service.l1.namespace_table import Facts, NamespaceTable
from service.l1.records import Record, RecordTable

_PIECE_RECORDS = 65_536
_MAX_ENTRY_BYTES = 1 << 20
_LOOKS = 3  # at a record that seems damaged: the depot may be writing it


@dataclass(slots=True)
class Holding:
    """The chunks of one model of one tenant, of one size in tokens. `num_bytes` are those of their slots."""

    tenant: str
    model_name: str
    model_revision: str
    chunk_size: int
    num_chunks: int = 0
    num_bytes: int = 0


@dataclass(slots=True)
class L1FileContents:
    """What is in an L1 file. `header` is None if it is damaged or of an unknown format; then nothing else is known.

    `last_store_time` is in seconds since the epoch, 0 without a chunk. `used_by` is the id of the process that uses it,
    0 if that is unknown, and None if none does.
    """

    path: Path
    size_bytes: int
    owner: int
    used_by: int | None
    header: Header | None
    is_cut_short: bool = False
    num_damaged: int = 0
    last_store_time: float = 0.0
    holdings: list[Holding] = field(default_factory=list)

    @property
    def num_chunks(self) -> int:
        """The number of chunks whose records are right."""
        return sum(each.num_chunks for each in self.holdings)

    @property
    def num_bytes(self) -> int:
        """The bytes of the slots of all chunks."""
        return sum(each.num_bytes for each in self.holdings)


def inspect(path: Path) -> L1FileContents:
    """Read what an L1 file holds.

    Raises: L1FileUnusable: it can't be opened, or it is no L1 file.
    """
    fd = open_for_reading(path)
    try:
        about = os.fstat(fd)
        contents = L1FileContents(
            path=path,
            size_bytes=about.st_size,
            owner=about.st_uid,
            used_by=last_pid(fd) if is_locked(fd) else None,
            header=Header.unpack(read_start(fd)),
        )
        if contents.header is not None:
            _read_tables(fd, contents, contents.header)
        return contents
    finally:
        os.close(fd)


def open_for_reading(path: Path) -> int:
    """Return the descriptor of an L1 file.

    Raises: L1FileUnusable.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise L1FileUnusable(f"{path}: {open_refusal(error)}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not is_l1(fd):
            raise L1FileUnusable(f"{path}: it is no L1 file of a depot")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_tables(fd: int, contents: L1FileContents, header: Header) -> None:
    layout = Layout(header.l1_bytes)
    contents.is_cut_short = contents.size_bytes < layout.total_bytes
    entries: dict[tuple[int, int], Holding | None] = {}
    holdings: dict[tuple[str, str, str, int], Holding] = {}
    for record in _records(fd, layout, header.memory_id):
        holding = None
        if record is not None:
            entry = record.cell, record.namespace_sum
            if entry not in entries:
                facts = _namespace(fd, layout, header.memory_id, *entry)
                entries[entry] = _holding(facts, header.chunk_size, holdings) if facts is not None else None
            holding = entries[entry]
        if record is None or holding is None:
            contents.num_damaged += 1
            continue
        holding.num_chunks += 1
        holding.num_bytes += record.slot_bytes
        contents.last_store_time = max(contents.last_store_time, record.store_time_ns / 1e9)
    contents.holdings = sorted(holdings.values(), key=lambda each: (-each.num_bytes, each.tenant, each.model_name))


def _records(fd: int, layout: Layout, memory_id: bytes) -> Iterator[Record | None]:
    """Yield the record of each entry that is not erased. None: it is damaged."""
    for first in range(0, layout.num_records, _PIECE_RECORDS):
        num_records = min(_PIECE_RECORDS, layout.num_records - first)
        data = os.pread(fd, num_records * RECORD_BYTES, layout.records_offset + first * RECORD_BYTES)
        for number, record, _ in _scan(data, memory_id, first):
            if record is not None:
                yield record
            else:
                yield from _looked_at_again(fd, layout, memory_id, number)
        if len(data) < num_records * RECORD_BYTES:
            return


def _looked_at_again(fd: int, layout: Layout, memory_id: bytes, number: int) -> Iterator[Record | None]:
    for _ in range(_LOOKS):
        data = os.pread(fd, RECORD_BYTES, layout.records_offset + number * RECORD_BYTES)
        found = [record for _, record, _ in _scan(data, memory_id, number)]
        if found != [None]:
            yield from found
            return
    yield None


def _scan(data: bytes, memory_id: bytes, first: int) -> Iterator[tuple[int, Record | None, int]]:
    whole = len(data) // RECORD_BYTES * RECORD_BYTES
    return RecordTable(memoryview(data)[:whole], memory_id, first_number=first).scan()


def _namespace(fd: int, layout: Layout, memory_id: bytes, cell: int, own_sum: int) -> Facts | None:
    if not 0 <= cell < layout.num_cells:
        return None
    num_bytes = min(_MAX_ENTRY_BYTES, (layout.num_cells - cell) * CELL_BYTES)
    data = os.pread(fd, num_bytes, HEADER_BYTES + cell * CELL_BYTES)
    whole = len(data) // CELL_BYTES * CELL_BYTES
    return NamespaceTable(memoryview(data)[:whole], memory_id, first_cell=cell).read(cell, own_sum)


def _holding(facts: Facts, chunk_size: int, holdings: dict[tuple[str, str, str, int], Holding]) -> Holding:
    """Return the holding of a namespace. `chunk_size` is that of facts without one."""
    tenant, model_name, revision = (str(facts.get(name, "")) for name in ("tenant", "model_name", "model_revision"))
    key = tenant, model_name, revision, int(facts.get("chunk_size", chunk_size))
    return holdings.setdefault(key, Holding(*key))
