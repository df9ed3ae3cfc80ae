"""Chunk bytes that a call carries: cut into pieces to send, and checked to be complete when received."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import grpc

from kvdepot.errors import DepotError
from kvdepot.wire import MAX_PIECE_BYTES, Piece, store_piece

if TYPE_CHECKING:
    from typing_extensions import Buffer


def messages(data: Buffer | Iterable[Buffer]) -> Iterator[bytes]:
    """Cut one buffer, or each of several, into serialised messages of at most 1 MiB of data."""
    try:
        memoryview(data)  # type: ignore[arg-type]
    except TypeError:  # not a buffer
        for buffer in data:  # type: ignore[union-attr]
            yield from pieces(buffer)
    else:
        yield from pieces(data)  # type: ignore[arg-type]


def pieces(data: Buffer) -> Iterator[bytes]:
    """Cut C-contiguous bytes into serialised messages. Each byte is copied once, into its message."""
    view = memoryview(data)
    if view.nbytes == 0:  # cannot be cast
        return
    flat = view.cast("B")
    for start in range(0, flat.nbytes, MAX_PIECE_BYTES):
        yield store_piece(flat[start : start + MAX_PIECE_BYTES])


class PieceOrder:
    """The position at which the next piece of an inline retrieve must start.

    Chunks follow each other from `first_chunk` on. Pieces of a chunk follow each other without a gap.
    """

    def __init__(self, *, chunk_bytes: int, first_chunk: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._chunk = first_chunk
        self._offset_bytes = 0

    def accept(self, piece: Piece) -> None:
        """Advance by one piece, which must begin where the one before it ended.

        Raises: DepotError.
        """
        end = piece.offset_bytes + len(piece.data)
        expected = (self._chunk, self._offset_bytes)
        if (piece.chunk_index, piece.offset_bytes) != expected or end > self._chunk_bytes:
            raise incomplete(
                f"bytes {piece.offset_bytes} to {end} of chunk {piece.chunk_index} came where byte"
                f" {self._offset_bytes} of chunk {self._chunk} was next (a chunk has {self._chunk_bytes} bytes)"
            )
        self._offset_bytes = end
        if end == self._chunk_bytes:
            self._chunk += 1
            self._offset_bytes = 0

    def finish(self) -> None:
        """Check that the stream ended between two chunks.

        Raises: DepotError.
        """
        if self._offset_bytes:
            raise incomplete(f"the stream ended at byte {self._offset_bytes} of chunk {self._chunk}")


class TargetBuffer:
    """The caller's buffer, into which the pieces of an inline retrieve are copied one after the other.

    It must be writable and C-contiguous.

    Raises: ValueError.
    """

    def __init__(self, buffer: Buffer) -> None:
        view = memoryview(buffer)
        if view.readonly:
            raise ValueError("the buffer is read-only")
        self._target = view.cast("B") if view.nbytes else memoryview(bytearray())
        self._filled_bytes = 0

    def append(self, data: memoryview) -> None:
        """Copy the next piece, for which there must be space left.

        Raises: DepotError.
        """
        end = self._filled_bytes + len(data)
        if end > self._target.nbytes:
            raise incomplete(f"more than the buffer's {self._target.nbytes} bytes came")
        self._target[self._filled_bytes : end] = data
        self._filled_bytes = end

    def finish(self) -> None:
        """Check that the buffer is full.

        Raises: DepotError.
        """
        if self._filled_bytes != self._target.nbytes:
            raise incomplete(f"{self._filled_bytes} of the buffer's {self._target.nbytes} bytes came")


def incomplete(message: str) -> DepotError:
    """Return the error for an inline stream with missing or misplaced bytes."""
    return DepotError(grpc.StatusCode.DATA_LOSS, "INCOMPLETE_STREAM", message)
