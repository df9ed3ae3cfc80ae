"""The simulated card: a folder with a CUDA driver and memory, and the variables that make processes use it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SITE = Path(__file__).with_name("site")
"""What is in front of a process's other packages: the stand-in for CuPy, and the layer under torch."""

_DRIVER = Path(__file__).with_name("driver")
_KERNELS_ON_CPU = Path(__file__).parents[2] / "kernels" / "cuda"


@contextmanager
def simulated_card() -> Iterator[dict[str, str]]:
    """Make a card while the block runs; yield the environment variables of its processes.

    At the end all memory of the card is gone, also that of killed processes, and also when this process is
    killed.
    """
    with tempfile.TemporaryDirectory(prefix="simulated-card-") as folder, _shared_memory() as memory:
        card = Path(folder)
        (card / "memory").symlink_to(memory)
        (card / "kernels").mkdir()
        compile_driver(card / "libcuda.so.1")
        yield {
            "SIMULATED_CARD": folder,
            "PYTHONPATH": _in_front("PYTHONPATH", SITE),
            "LD_LIBRARY_PATH": _in_front("LD_LIBRARY_PATH", card),
        }


def compile_driver(path: Path) -> None:
    """Compile the driver to a library."""
    flags = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{_KERNELS_ON_CPU}")
    subprocess.run(["gcc", *flags, "-o", path, *sorted(_DRIVER.glob("*.c"))], check=True, timeout=60)


@contextmanager
def _shared_memory() -> Iterator[Path]:
    """Make a folder in /dev/shm. A shell waits for the end of this process to delete it, also after SIGKILL."""
    path = Path(tempfile.mkdtemp(prefix="simulated-card-", dir="/dev/shm"))
    keeper = subprocess.Popen(
        ["/bin/sh", "-c", 'cat; rm -rf "$0"', path], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield path
    finally:
        keeper.communicate()
        shutil.rmtree(path, ignore_errors=True)


def _in_front(variable: str, path: Path) -> str:
    """Return the search path of the variable, with a folder first."""
    return os.pathsep.join([str(path), *filter(None, [os.environ.get(variable)])])
