"""What files hold, told by their content where that is quick and by their size, time and samples where it is not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

SAMPLES = 16
SAMPLE_BYTES = 4096
_HUB_BLOBS = "blobs"

Signature = tuple[tuple[str, int, int, int, int], ...]
"""Name, inode, size, time of modification and of change of each file: another one if a file was replaced."""


def files_in(folder: Path, is_wanted: Callable[[str], bool]) -> list[Path]:
    """The files of a folder by name; those of folders in it are left out.

    Raises:
        OSError: it can't be read.
    """
    return sorted(Path(each.path) for each in os.scandir(folder) if is_wanted(each.name) and each.is_file())


def signature(files: Sequence[Path]) -> Signature:
    """What changes with the files, for a few microseconds.

    Raises:
        OSError: one can't be read.
    """
    found = [(path.name, path.stat()) for path in files]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)


def content(path: Path, most_bytes: int) -> list[str]:
    """The name and content of a file, as text to be part of a digest.

    A file of Hugging Face's cache is a link whose target is named by its content. Others of at most ``most_bytes`` are
    read. Of larger ones the size, the time and samples count, so that equal copies of another time differ.

    Raises:
        OSError: it can't be read.
    """
    if path.is_symlink() and (target := path.readlink()).parent.name == _HUB_BLOBS:
        return [path.name, target.name]
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        if stat.st_size <= most_bytes:
            return [path.name, hashlib.file_digest(file, "sha256").hexdigest()]
        digest = hashlib.sha256()
        for number in range(SAMPLES):
            offset = number * (stat.st_size - SAMPLE_BYTES) // (SAMPLES - 1)
            digest.update(os.pread(file.fileno(), SAMPLE_BYTES, offset))
        return [path.name, str(stat.st_size), str(stat.st_mtime_ns), digest.hexdigest()]


def changed_after(path: Path, moment_seconds: float) -> bool:
    """Whether a file was written or put in its place after a moment (Unix time); never one of Hugging Face's cache.

    Raises:
        OSError: it can't be read.
    """
    if path.is_symlink() and path.readlink().parent.name == _HUB_BLOBS:
        return False
    stat = path.stat()
    return max(stat.st_mtime, stat.st_ctime) > moment_seconds
