"""Identifies files: small ones by their content, large ones by size, time and samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

SAMPLES = 16
SAMPLE_BYTES = 4096
_HUB_BLOBS = "blobs"

Signature = tuple[tuple[str, int, int, int, int], ...]
"""Name, inode, size, times of modification and of change of each file. It differs if a file was replaced."""


def files_in(folder: Path, is_wanted: Callable[[str], bool]) -> list[Path]:
    """Return the wanted files of a folder, sorted by name, without those of its subfolders.

    Raises: OSError.
    """
    return sorted(Path(each.path) for each in os.scandir(folder) if is_wanted(each.name) and each.is_file())


def hub_folder(name: str, file_name: str, cache_dir: str | None = None, revision: str | None = None) -> Path | None:
    """Return the folder of Hugging Face's cache that holds this file of a model or an adapter, or None."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, file_name, cache_dir=cache_dir, revision=revision)
    except (ImportError, ValueError):  # the library is not installed, or the hub has no such names
        return None
    return Path(found).parent if isinstance(found, str) else None


def is_hub_link(path: Path) -> bool:
    """Return whether a file is a link into Hugging Face's cache. That cache names files by their content.

    Raises: OSError.
    """
    return path.is_symlink() and path.readlink().parent.name == _HUB_BLOBS


def signature(files: Sequence[Path]) -> Signature:
    """Return a value that changes with the files. This takes a few microseconds.

    Raises: OSError.
    """
    found = [(path.name, path.stat()) for path in files]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)


def content(path: Path, max_bytes: int) -> list[str]:
    """Return the name and content of a file, as text for a digest.

    A file of Hugging Face's cache is a link whose target is named by its content. Other files of at most `max_bytes`
    are read. Of larger ones the size, the time and samples count, so that equal copies with different times differ.

    Raises: OSError.
    """
    if is_hub_link(path):
        return [path.name, path.readlink().name]
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        if stat.st_size <= max_bytes:
            return [path.name, hashlib.file_digest(file, "sha256").hexdigest()]
        digest = hashlib.sha256()
        for number in range(SAMPLES):
            offset = number * (stat.st_size - SAMPLE_BYTES) // (SAMPLES - 1)
            digest.update(os.pread(file.fileno(), SAMPLE_BYTES, offset))
        return [path.name, str(stat.st_size), str(stat.st_mtime_ns), digest.hexdigest()]


def changed_after(path: Path, unix_seconds: float) -> bool:
    """Return whether a file was written or replaced after a moment. Files of Hugging Face's cache never change.

    Raises: OSError.
    """
    if is_hub_link(path):
        return False
    stat = path.stat()
    return max(stat.st_mtime, stat.st_ctime) > unix_seconds
