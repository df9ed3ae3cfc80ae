"""The checksum of a chunk whose bytes arrive in pieces of any size."""

from __future__ import annotations

from kernels.checksum import WORD_BYTES
from service.depot.instances import TransferBackend
from service.l1.chunk import Chunk


class InlineChecksum:
    """The checksum of the bytes that have arrived in a chunk's slot.

    The words of a piece are read directly after the piece was copied, while they are in the processor's cache. A word
    that is not complete waits for the next piece.
    """

    def __init__(self, backend: TransferBackend, chunk: Chunk, chunk_bytes: int) -> None:
        self._backend = backend
        self._l1_offset_bytes = chunk.slot.offset_bytes
        self._chunk_bytes = chunk_bytes
        self._read_bytes = 0
        self._sum = 0

    def add(self, filled_bytes: int) -> None:
        """Add what has come since the last call, now that the first `filled_bytes` of the chunk are in its slot."""
        end = filled_bytes if filled_bytes == self._chunk_bytes else filled_bytes // WORD_BYTES * WORD_BYTES
        if end > self._read_bytes:
            self._sum += self._backend.checksum_part(
                self._l1_offset_bytes + self._read_bytes, end - self._read_bytes, self._read_bytes
            )
            self._read_bytes = end

    @property
    def value(self) -> int:
        """The checksum of the chunk, once all of its bytes were added."""
        assert self._read_bytes == self._chunk_bytes
        return self._sum % 2**64
