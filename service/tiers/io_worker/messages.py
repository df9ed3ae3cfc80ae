"""The messages between the depot and an I/O worker: a JSON object a line, and blobs for the results of a scan.

The depot sends one request and waits for its last reply. A batch is answered part by part, in any order; the last
reply is `done` or `error`. Before a blob comes a line with its size. Names and keys are in hex.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from service.tiers.record import RECORD_BYTES, ChunkRecord, OwnerTag
from service.tiers.store import Place

MAX_LINE_BYTES = 1 << 20
MAX_BLOB_BYTES = 4 << 20
SCANNED_PER_BLOB = 4_096
NOTE_BYTES = 32_768
_SCANNED = struct.Struct(f"<QQQ{RECORD_BYTES}s")

Message = Mapping[str, Any]


class ProtocolBroken(Exception):
    """The other side sent what the protocol does not have. It can't be trusted any more."""


class Verb(StrEnum):
    """What a request asks for."""

    OPEN = "open"
    EXISTS = "exists"
    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    SCAN = "scan"
    READ_NOTE = "read note"
    WRITE_NOTE = "write note"
    CLOSE = "close"


class ReadEnd(StrEnum):
    """What a part of a read found. The values are those of `LoadEnd`, whose module an I/O worker has no use for."""

    ARRIVED = "arrived"
    ABSENT = "absent"
    DAMAGED = "damaged"


class WriteEnd(StrEnum):
    """How the write of a chunk ended."""

    OK = "ok"
    FULL = "full"
    LATE = "late"
    FAILED = "failed"
    CORRUPT = "corrupt"
    """Its bytes in L1 are not those of its checksum."""


class ReadPart(NamedTuple):
    """A chunk to read: where it is, the tag of its tenant, and the slot of L1 for it, by its offset among the slots."""

    place: Place
    key: bytes
    tenant: bytes
    offset_bytes: int
    slot_bytes: int
    chunk_bytes: int


class WritePart(NamedTuple):
    """A chunk to write, with what its record says. `checksum` is None if it was not computed."""

    place: Place
    key: bytes
    owner: OwnerTag
    absent_tokens: tuple[int, ...]
    offset_bytes: int
    slot_bytes: int
    chunk_bytes: int
    checksum: int | None
    store_time_ns: int
    generation: int


def line(message: Message) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def parse(received: bytes | bytearray) -> dict[str, Any]:
    """Return the message of a line.

    Raises: ProtocolBroken.
    """
    try:
        message = json.loads(received.decode())  # of bytes it would find the encoding out
    except ValueError as error:
        raise ProtocolBroken(f"a line is no JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolBroken("a line is no object")
    return message


def number_in(message: Message, field: str, below: int) -> int:
    """Return a number from 0 to `below`, exclusive.

    Raises: ProtocolBroken.
    """
    number = message.get(field)
    if type(number) is not int or not 0 <= number < below:
        raise ProtocolBroken(f"{field} is {number!r}, not a number below {below}")
    return number


def packed_place(place: Place) -> list[object]:
    """Return a place as messages have it."""
    return [place.name.hex(), *place[1:]]


def unpacked_place(packed: list[Any]) -> Place:
    """Return what `packed_place` packed."""
    name, offset_bytes, slot_bytes, record_number, stale_records = packed
    return Place(bytes.fromhex(name), offset_bytes, slot_bytes, record_number, tuple(stale_records))


def packed_read(part: ReadPart) -> list[object]:
    """Return a part of a read as messages have it."""
    return [packed_place(part.place), part.key.hex(), part.tenant.hex(), *part[3:]]


def unpacked_read(packed: list[Any]) -> ReadPart:
    """Return what `packed_read` packed."""
    place, key, tenant, *numbers = packed
    return ReadPart(unpacked_place(place), bytes.fromhex(key), bytes.fromhex(tenant), *numbers)


def packed_write(part: WritePart) -> list[object]:
    """Return a part of a write as messages have it."""
    tags = [tag.hex() for tag in part.owner]
    return [packed_place(part.place), part.key.hex(), tags, part.absent_tokens, *part[4:]]


def unpacked_write(packed: list[Any]) -> WritePart:
    """Return what `packed_write` packed."""
    place, key, tags, absent, *numbers = packed
    owner = OwnerTag(*map(bytes.fromhex, tags))
    return WritePart(unpacked_place(place), bytes.fromhex(key), owner, tuple(absent), *numbers)


def packed_scanned(place: Place, record: bytes) -> bytes:
    """Return one result of a scan as blobs have it. The name of a local store's place is the key in the record."""
    return _SCANNED.pack(place.offset_bytes, place.slot_bytes, place.record_number, record)


def check_scanned(blob: bytes) -> None:
    """Check that a blob has whole results of a scan.

    Raises: ProtocolBroken.
    """
    if len(blob) % _SCANNED.size:
        raise ProtocolBroken(f"a blob of {len(blob)} bytes has no whole results")


def unpacked_scanned(blob: bytes) -> Iterator[tuple[Place, ChunkRecord]]:
    """Yield the results of a scan, whose records the store has verified."""
    for offset, slot_bytes, number, packed in _SCANNED.iter_unpack(blob):
        record = ChunkRecord.unpack_verified(packed)
        yield Place(record.key, offset, slot_bytes, number), record
