"""Copies scattered blocks at the speed of one large memcpy, with a library that is compiled at its first use."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np

from kernels.errors import MemoryVanished
from kernels.host.block_views import Blocks, Bytes
from kernels.host.system_copy import SystemCopy

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
INCLUDED = SOURCE.with_name("vectors.h")
BUILT = Path(__file__).parents[2] / "build"
FLAGS = ("-O2", "-shared", "-fPIC")
COMPILE_SECONDS = 60.0

BLOCKS_LOOP = 2  # the number of the loop over blocks in [layers, kinds, blocks, …]


class Copy(Protocol):
    """Copies blocks, and sums bytes of chunks. Both happen without the GIL if a compiler made the code."""

    def __call__(self, to: Blocks, source: Blocks, foreign: range) -> None:
        """Copy blocks to others, which have the same number and shape.

        `foreign` has the addresses of the engine's memory. One side is in it. If the engine took memory away, the bytes
        of `to` are undefined.

        Raises: MemoryVanished.
        """

    def with_checksum(self, to: Blocks, source: Blocks, foreign: range, chunk_address: int) -> int:
        """Copy blocks as above. Return what they add to the checksum of the chunk, which begins at `chunk_address`.

        Runs have a multiple of 8 bytes, and begin at one in the chunk.

        Raises: MemoryVanished.
        """

    def checksum(self, rows: Bytes, chunk_offset_bytes: int) -> int:
        """Return what `rows`, a 2D view of a chunk, add to its checksum. The first one is `chunk_offset_bytes` into it.

        The offset and the rows' distance are multiples of 8 bytes. So is a row, unless it ends with the chunk.
        """


class StreamingCopy:
    """A copy with the compiled library. `level` is one of its source's levels, by default the processor's best."""

    def __init__(self, library: Path, level: int | None = None) -> None:
        compiled = ctypes.CDLL(str(library))
        self._copy = compiled.kvdepot_copy
        self._copy.argtypes = [
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int),
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t),
            *(ctypes.c_size_t, ctypes.c_void_p),
        ]
        self._copy.restype = ctypes.c_int
        self._checksum = compiled.kvdepot_checksum
        self._checksum.argtypes = [ctypes.c_void_p, *4 * (ctypes.c_int64,), ctypes.c_int]
        self._checksum.restype = ctypes.c_uint64
        self.level: int = compiled.kvdepot_copy_level() if level is None else level

    def __call__(self, to: Blocks, source: Blocks, foreign: range) -> None:
        """Copy blocks: see `Copy`."""
        self._run(to, source, foreign, 0, None)

    def with_checksum(self, to: Blocks, source: Blocks, foreign: range, chunk_address: int) -> int:
        """Copy blocks, and return their part of the chunk's checksum: see `Copy`."""
        part = ctypes.c_uint64()
        self._run(to, source, foreign, chunk_address, ctypes.addressof(part))
        return part.value

    def checksum(self, rows: Bytes, chunk_offset_bytes: int) -> int:
        """Return what rows of a chunk add to its checksum: see `Copy`."""
        num_rows, row_bytes = rows.shape
        return int(
            self._checksum(rows.ctypes.data, num_rows, rows.strides[0], row_bytes, chunk_offset_bytes, self.level)
        )

    def _run(self, to: Blocks, source: Blocks, foreign: range, chunk_address: int, part: int | None) -> None:
        num_layers, num_kinds, _, *counts, run_bytes = to.array.shape
        counts = [num_layers, num_kinds, len(to.block_ids), *counts]
        loops = np.array((counts, to.array.strides[:-1], source.array.strides[:-1]), dtype=np.int64).T.copy()
        to_offsets, source_offsets = to.offsets_bytes, source.offsets_bytes
        is_gone = self._copy(
            *(to.array.ctypes.data, source.array.ctypes.data, loops.ctypes.data, len(loops)),
            *(BLOCKS_LOOP, to_offsets.ctypes.data, source_offsets.ctypes.data),
            *(run_bytes, self.level, foreign.start, foreign.stop),
            *(chunk_address, part),
        )
        if is_gone:
            raise MemoryVanished


def best_copy() -> Copy:
    """Return the quickest copy of this machine. The first call may compile it, which takes half a second.

    There may be none.

    Raises: BackendError.
    """
    try:
        return StreamingCopy(built_library())
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("the system copies on the host, which takes two to four times as long: %s", error)
        return SystemCopy()


def built_library() -> Path:
    """Return the compiled library, which is compiled if it does not exist.

    It lies beside the code, or in the user's cache if the user can't write there.

    Raises: OSError, subprocess.SubprocessError.
    """
    name = f"streaming_copy-{hashlib.sha256(SOURCE.read_bytes() + INCLUDED.read_bytes()).hexdigest()[:16]}.so"
    if (BUILT / name).exists():
        return BUILT / name
    try:
        BUILT.mkdir(exist_ok=True)
        return _compiled(BUILT / name)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        folder = _own_folder()
        return folder / name if (folder / name).exists() else _compiled(folder / name)


def _own_folder() -> Path:
    """Return a folder that this user alone can write, since a library from it is run.

    Raises: OSError.
    """
    try:
        folder = Path.home() / ".cache" / "kvdepot"
    except RuntimeError as error:
        raise OSError("the user has no home") from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stat = folder.stat()
    if stat.st_uid != os.geteuid() or stat.st_mode & 0o022:
        raise PermissionError(f"other users can write {folder}")
    return folder


def _compiled(library: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        raise OSError("there is no C compiler")
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / "made.so"
        command = (compiler, *FLAGS, "-o", str(made), str(SOURCE))
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        made.replace(library)  # atomic, because other processes may compile at the same time
    return library
