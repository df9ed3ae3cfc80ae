"""Copies scattered blocks by system calls. For memory that is gone, these return an error and send no signal."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kernels.checksum import kvsum64
from kernels.errors import BackendError, MemoryVanished
from kernels.host.block_views import Blocks, Bytes, chunk_rows

MAX_RUNS = 1024
"""The most runs of one call: IOV_MAX of Linux."""


class SystemCopy:
    """A copy through a buffer of the thread. The system copies between it and the engine, NumPy between it and L1.

    In the buffer, blocks lie as in the engine's memory. So the system copies the longest possible runs, each of which
    costs a quarter of a microsecond, and it writes no byte outside a block.

    The system must let a process copy with process_vm_readv and process_vm_writev.

    Raises: BackendError.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._read, self._write = libc.process_vm_readv, libc.process_vm_writev
        except AttributeError as error:
            raise BackendError("this system has no process_vm_readv") from error
        for call in (self._read, self._write):
            call.argtypes = (ctypes.c_int, *2 * (ctypes.c_void_p, ctypes.c_ulong), ctypes.c_ulong)
            call.restype = ctypes.c_ssize_t
        self._pid = os.getpid()
        self._threads = threading.local()
        try:
            one = Blocks(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int64))
            self(one, one, range(0))
        except OSError as error:
            raise BackendError(f"this system does not let a process copy: {error.strerror}") from error

    def __call__(self, to: Blocks, source: Blocks, foreign: range) -> None:
        """Copy blocks: see `streaming_copy.Copy`."""
        if to.array.ctypes.data in foreign:
            packed = self._packed(to)
            copy_with_numpy(packed, source)
            self._call(self._read, to, packed)
        else:
            packed = self._packed(source)
            self._call(self._write, source, packed)
            copy_with_numpy(to, packed)

    def with_checksum(self, to: Blocks, source: Blocks, foreign: range, chunk_address: int) -> int:
        """Copy blocks, and return their part of the chunk's checksum: see `streaming_copy.Copy`.

        It sums the side of the chunk, which nothing else writes.
        """
        self(to, source, foreign)
        rows = chunk_rows(to if to.array.ctypes.data not in foreign else source)
        return sum(self.checksum(of_layer, of_layer.ctypes.data - chunk_address) for of_layer in rows) % 2**64

    def checksum(self, rows: Bytes, chunk_offset_bytes: int) -> int:
        """Return what rows of a chunk add to its checksum: see `streaming_copy.Copy`."""
        stride_bytes = rows.strides[0]
        parts = (kvsum64(row, chunk_offset_bytes + number * stride_bytes) for number, row in enumerate(rows))
        return sum(parts) % 2**64

    def _packed(self, theirs: Blocks) -> Blocks:
        """Return the thread's buffer for blocks, in stride order without gaps; valid until the thread's next copy."""
        order = _order(theirs.array)
        shape = list(theirs.array.shape)
        shape[2] = len(theirs.block_ids)
        num_bytes = math.prod(shape)
        buffer: Bytes = getattr(self._threads, "buffer", np.empty(0, np.uint8))
        if buffer.size < num_bytes:
            buffer = self._threads.buffer = np.empty(num_bytes, np.uint8)
        ordered = buffer[:num_bytes].reshape([shape[axis] for axis in order])
        return Blocks(ordered.transpose(np.argsort(order)), np.arange(shape[2]))

    def _call(self, call: Callable[..., int], theirs: Blocks, packed: Blocks) -> None:
        """Read or write blocks in the order of their strides, with the system call `call`.

        Raises: MemoryVanished, OSError.
        """
        addresses, run_bytes = _runs(theirs)
        at = packed.array.ctypes.data
        for begin in range(0, len(addresses), MAX_RUNS):
            some = addresses[begin : begin + MAX_RUNS]
            runs, ours = _iovecs(some, run_bytes), _iovecs(np.array([at]), len(some) * run_bytes)
            # The engine's runs are on the remote side of the call, which the system checks page by page.
            copied_bytes = call(self._pid, runs.ctypes.data, len(runs), ours.ctypes.data, 1, 0)
            error = ctypes.get_errno()
            if copied_bytes < 0 and error != errno.EFAULT:
                raise OSError(error, os.strerror(error))
            if copied_bytes < len(some) * run_bytes:
                raise MemoryVanished
            at += len(some) * run_bytes


def copy_with_numpy(to: Blocks, source: Blocks) -> None:
    """Copy between blocks of this process; blocks that follow each other on both sides are copied together."""
    follows = (np.diff(to.block_ids) == 1) & (np.diff(source.block_ids) == 1)
    cuts = (np.flatnonzero(~follows) + 1).tolist()
    for begin, end in zip([0, *cuts], [*cuts, len(to.block_ids)], strict=True):
        to_id, source_id, count = int(to.block_ids[begin]), int(source.block_ids[begin]), end - begin
        np.copyto(to.array[:, :, to_id : to_id + count], source.array[:, :, source_id : source_id + count])


def _order(array: Bytes) -> list[int]:
    """Return the axes of `[layers, kinds, blocks, *loops, run_bytes]`, the loops by falling stride."""
    loops = sorted(range(3, array.ndim - 1), key=lambda axis: -array.strides[axis])
    return [0, 1, 2, *loops, array.ndim - 1]


def _runs(blocks: Blocks) -> tuple[NDArray[np.int64], int]:
    """Return where the longest contiguous runs of some blocks begin, and the bytes of each."""
    ordered = blocks.array.transpose(_order(blocks.array))
    run_bytes, axis = ordered.shape[-1], ordered.ndim - 2
    while axis > 2 and ordered.strides[axis] == run_bytes:
        run_bytes *= ordered.shape[axis]
        axis -= 1
    addresses = np.array([ordered.ctypes.data])
    for number in range(axis + 1):
        offsets = blocks.offsets_bytes if number == 2 else np.arange(ordered.shape[number]) * ordered.strides[number]
        addresses = (addresses[:, None] + offsets).ravel()
    return addresses, run_bytes


def _iovecs(addresses: NDArray[np.int64], num_bytes: int) -> NDArray[np.uint64]:
    """Return an array of C's `struct iovec`."""
    iovecs = np.empty((len(addresses), 2), np.uint64)
    iovecs[:, 0], iovecs[:, 1] = addresses, num_bytes
    return iovecs
