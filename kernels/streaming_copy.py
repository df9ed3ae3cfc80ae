"""Strided copies at the speed of one large memcpy: a small compiled part where a compiler is or was, else NumPy's."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
BUILT = Path(__file__).parents[1] / "build"
FLAGS = ("-O2", "-shared", "-fPIC")
COMPILE_SECONDS = 60.0
MIN_RUN_BYTES = 256
"""NumPy copies shorter runs as quickly."""

Copy = Callable[[NDArray[np.uint8], NDArray[np.uint8]], None]
"""Copies the second array into the first, of equal shape and contiguous in the last dimension, without the GIL."""


class StreamingCopy:
    """Copies with the compiled part; ``level`` is one of those in its source, by default the processor's best."""

    def __init__(self, library: Path, level: int | None = None) -> None:
        compiled = ctypes.CDLL(str(library))
        self._copy = compiled.kvdepot_copy
        self._copy.argtypes = [
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_int, ctypes.c_int64, ctypes.c_int),
        ]
        self._copy.restype = None
        self.level: int = compiled.kvdepot_copy_level() if level is None else level

    def __call__(self, to: NDArray[np.uint8], source: NDArray[np.uint8]) -> None:
        """See `Copy`."""
        *counts, run_bytes = to.shape
        if run_bytes < MIN_RUN_BYTES:
            np.copyto(to, source)
            return
        loops = np.array((counts, to.strides[:-1], source.strides[:-1]), dtype=np.int64).T.copy()
        self._copy(to.ctypes.data, source.ctypes.data, loops.ctypes.data, len(counts), run_bytes, self.level)


def best_copy() -> Copy:
    """The quickest that there is on this machine; may compile, which takes half a second, once."""
    try:
        return StreamingCopy(built_library())
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("NumPy copies on the host, which takes about 1.5 times as long: %s", error)
        return np.copyto


def built_library() -> Path:
    """The compiled part, compiled here and now if it is not there. Raises: OSError, subprocess.SubprocessError."""
    source = SOURCE.read_bytes()
    library = BUILT / f"streaming_copy-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if library.exists():
        return library
    compiler = shutil.which("cc")
    if compiler is None:
        raise OSError("there is no C compiler")
    BUILT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as folder:
        made = Path(folder) / "made.so"
        command = (compiler, *FLAGS, "-o", str(made), str(SOURCE))
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        made.replace(library)  # whole or not at all: others may compile at the same time
    return library


if __name__ == "__main__":  # for an image, which has a compiler only while it is made
    print(built_library())  # noqa: T201
