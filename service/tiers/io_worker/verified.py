"""A store whose records and bytes are verified: what an I/O worker does around each read and write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import TypeVar

from service.tiers.io_worker.checksum import Checksum
from service.tiers.io_worker.messages import Message, ReadEnd, ReadPart, WriteEnd, WritePart
from service.tiers.record import ChunkRecord
from service.tiers.store import Part, Store, StoreError, StoreFull

_R = TypeVar("_R")


class VerifiedStore:
    """Reads chunks that match their records, and writes those whose bytes in L1 match their checksums.

    `secret` is empty, or the key of the records' sums. Both methods yield replies, each as soon as it is known.
    """

    def __init__(self, store: Store, l1: memoryview, checksum: Checksum, secret: bytes = b"") -> None:
        self._store = store
        self._l1 = l1
        self._checksum = checksum
        self._secret = secret

    def read(self, wanted: Sequence[ReadPart]) -> Iterator[Message]:
        """Read chunks into their slots.

        Raises: StoreError.
        """
        parts = [Part(part.place, self._slot(part), part.chunk_bytes) for part in wanted]
        for number, packed in _each_once(self._store.read_into(parts), parts):
            reply: dict[str, object] = {"part": number, "end": ReadEnd.ABSENT}
            if packed is not None:
                reply |= self._read_end(packed, parts[number], wanted[number])
            yield reply

    def write(self, wanted: Sequence[WritePart]) -> Iterator[Message]:
        """Write chunks, each with a new record. The store gets each as soon as it is verified.

        Raises: StoreError.
        """
        numbers: list[int] = []
        refused: list[Message] = []

        def verified() -> Iterator[Part]:
            for number, part in enumerate(wanted):
                slot = self._slot(part)
                try:
                    record = self._new_record(part, slot[: part.chunk_bytes])
                except ValueError as error:
                    refused.append({"part": number, "end": WriteEnd.FAILED, "detail": str(error)})
                    continue
                if record is None:
                    refused.append({"part": number, "end": WriteEnd.CORRUPT})
                    continue
                numbers.append(number)
                yield Part(part.place, slot, part.chunk_bytes, record)

        try:
            for index, refusal in _each_once(self._store.write_from(verified()), numbers):
                yield {"part": numbers[index], **_write_end(refusal)}
            if len(numbers) + len(refused) < len(wanted):
                raise StoreError("the store did not take all parts")
        except StoreError:
            yield from refused
            raise
        yield from refused

    def _slot(self, part: ReadPart | WritePart) -> memoryview:
        return self._l1[part.offset_bytes : part.offset_bytes + part.slot_bytes]

    def _read_end(self, packed: bytes, part: Part, wanted: ReadPart) -> Message:
        """Return what was read.

        A chunk whose own sum alone is wrong is damaged. In a local store it is absent: it is from before the depot got
        another secret. Elsewhere depots with other secrets have other names.
        """
        record = ChunkRecord.unpack_any(packed)
        is_of_chunk = record is not None and (record.key, record.chunk_bytes) == (wanted.key, wanted.chunk_bytes)
        if record is None or not is_of_chunk or record.checksum != self._checksum(part.data):
            return {"end": ReadEnd.DAMAGED}
        if ChunkRecord.unpack(packed, secret=self._secret, data=part.data) is None:
            return {"end": ReadEnd.ABSENT if self._store.capabilities.is_local else ReadEnd.DAMAGED}
        if record.owner.tenant != wanted.tenant:
            return {"end": ReadEnd.DAMAGED}
        return {"end": ReadEnd.ARRIVED, "checksum": record.checksum, "absent": record.absent_tokens}

    def _new_record(self, part: WritePart, data: memoryview) -> bytes | None:
        """Return a chunk's record. None: its bytes do not match its checksum.

        Raises: ValueError.
        """
        checksum = self._checksum(data)
        if part.checksum not in (None, checksum):
            return None
        record = ChunkRecord(
            key=part.key,
            chunk_bytes=part.chunk_bytes,
            checksum=checksum,
            store_time_ns=part.store_time_ns,
            owner=part.owner,
            absent_tokens=part.absent_tokens,
            generation=part.generation,
        )
        return record.pack(secret=self._secret, data=data)


def _each_once(results: Iterator[tuple[int, _R]], taken: Sized) -> Iterator[tuple[int, _R]]:
    """Yield the results of the parts that the store has taken.

    Raises: StoreError: a part has no result, or two.
    """
    answered: set[int] = set()
    for number, result in results:
        if number in answered or not 0 <= number < len(taken):
            raise StoreError(f"the store answered for part {number}, which it was not asked for any more")
        answered.add(number)
        yield number, result
    if len(answered) < len(taken):
        raise StoreError(f"the store left out {len(taken) - len(answered)} of {len(taken)} parts")


def _write_end(error: StoreError | None) -> dict[str, object]:
    if error is None:
        return {"end": WriteEnd.OK}
    return {"end": WriteEnd.FULL if isinstance(error, StoreFull) else WriteEnd.FAILED, "detail": str(error)}
