"""The note that the depots which share a store keep in it: one value under a fixed name, verified like a chunk."""

from __future__ import annotations

import time
from collections.abc import Callable

from blake3 import blake3

from service.tiers.io_worker.messages import NOTE_BYTES, ReadEnd, ReadPart, WriteEnd, WritePart
from service.tiers.io_worker.verified import VerifiedStore
from service.tiers.record import OwnerTag
from service.tiers.store import Place, StoreError

NOTE = b"kvdepot: what was cleared, format 1"
_NO_OWNER = OwnerTag(bytes(8), bytes(8), bytes(8))


class Notes:
    """Reads and writes the note through `memory`. Depots with another `secret` have another note."""

    def __init__(self, store: VerifiedStore, memory: memoryview, secret: bytes) -> None:
        self._store = store
        self._memory = memory
        self._name = blake3(NOTE, key=secret).digest() if secret else blake3(NOTE).digest()

    def read(self, take: Callable[[bytes], None]) -> bool:
        """Give the note to `take`, if there is one. Return whether there is a damaged one.

        Raises: StoreError.
        """
        wanted = ReadPart(Place(self._name), self._name, _NO_OWNER.tenant, 0, NOTE_BYTES, NOTE_BYTES)
        (reply,) = self._store.read([wanted])
        if reply["end"] == ReadEnd.ARRIVED:
            take(bytes(self._memory))
        return bool(reply["end"] == ReadEnd.DAMAGED)

    def write(self, note: bytes) -> None:
        """Replace the note.

        Raises: StoreError.
        """
        self._memory[:] = note
        part = WritePart(
            place=Place(self._name),
            key=self._name,
            owner=_NO_OWNER,
            absent_tokens=(),
            offset_bytes=0,
            slot_bytes=NOTE_BYTES,
            chunk_bytes=NOTE_BYTES,
            checksum=None,
            store_time_ns=time.time_ns(),
            generation=0,
        )
        (reply,) = self._store.write([part])
        if reply["end"] != WriteEnd.OK:
            raise StoreError(f"the note of what was cleared can't be written: {reply.get('detail')}")
