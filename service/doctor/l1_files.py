"""Gathers the facts of L1 files: of the one in the settings, and of others that no depot uses. It changes nothing."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from service.doctor.facts import L1FileFacts, LeftOverFacts
from service.l1 import l1_file
from service.l1.file_use import is_l1, is_locked, last_pid
from service.l1.format import Header, Layout
from service.l1.inspection import inspect
from service.l1.l1_file import L1FileUnusable
from service.l1.memory import why_unusable
from service.settings import Settings

SHARED_MEMORY = Path("/dev/shm")
MOUNTS = Path("/proc/self/mounts")
MAX_ENTRIES = 20_000
MAX_LEFT_OVER = 20


def configured(settings: Settings) -> L1FileFacts | None:
    """Return the facts of the file of `l1_file`. None: there is no such setting."""
    if not settings.l1_file:
        return None
    path = Path(settings.l1_file)
    wanted = Header(l1_bytes=settings.l1_size, chunk_size=settings.chunk_size, cache_epoch=settings.cache_epoch)
    try:
        return _existing(path, wanted)
    except FileNotFoundError:
        return _missing(path, wanted)
    except L1FileUnusable as error:
        return L1FileFacts(path=settings.l1_file, error=str(error))
    except OSError as error:
        return L1FileFacts(path=settings.l1_file, error=f"{path}: {l1_file.open_refusal(error)}")


def left_over(settings: Settings) -> tuple[LeftOverFacts, ...]:
    """Return L1 files that no process uses, and that are not the one of the settings."""
    own = Path(settings.l1_file) if settings.l1_file else None
    folders = {SHARED_MEMORY, *_hugetlbfs_mounts(), *([own.parent] if own is not None else [])}
    try:
        ours = own.stat() if own is not None else None
    except OSError:
        ours = None
    found: dict[tuple[int, int], LeftOverFacts] = {}
    for path, about in islice(_regular_files(sorted(folders)), MAX_ENTRIES):
        identity = about.st_dev, about.st_ino
        if identity in found or (ours is not None and identity == (ours.st_dev, ours.st_ino)):
            continue
        facts = _left_over(path)
        if facts is not None:
            found[identity] = facts
        if len(found) == MAX_LEFT_OVER:
            break
    return tuple(found.values())


def _existing(path: Path, wanted: Header) -> L1FileFacts:
    """Return the facts of a file, as a depot would find it.

    Raises: L1FileUnusable, OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        l1_file.check_kind(path, fd)
        l1_file.check_contents(path, fd)
        is_blank = l1_file.is_blank(fd)
        facts = L1FileFacts(
            path=str(path),
            exists=True,
            has_reserved_pages=l1_file.is_hugetlbfs(fd),
            allocated_bytes=l1_file.allocated_bytes(fd),
            used_by=last_pid(fd) if is_locked(fd) else None,
            why_empty="" if is_blank else why_unusable(fd, wanted),
            is_blank=is_blank,
        )
        if facts.used_by is None and (is_blank or facts.why_empty):
            _check_space(path, fd, wanted)
        return facts
    finally:
        os.close(fd)


def _missing(path: Path, wanted: Header) -> L1FileFacts:
    """Return the facts of a file that a depot would make."""
    try:
        fd = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except FileNotFoundError:
        return L1FileFacts(path=str(path), error=f"{path}: its folder does not exist")
    except OSError as error:
        return L1FileFacts(path=str(path), error=f"{path.parent}: {l1_file.open_refusal(error)}")
    try:
        l1_file.check_file_system(path, fd)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise L1FileUnusable(f"{path}: this user may not write to its folder")
        _check_space(path, fd, wanted)
        return L1FileFacts(path=str(path), has_reserved_pages=l1_file.is_hugetlbfs(fd))
    except L1FileUnusable as error:
        return L1FileFacts(path=str(path), error=str(error))
    finally:
        os.close(fd)


def _check_space(path: Path, fd: int, wanted: Header) -> None:
    try:
        l1_file.check_space(fd, Layout(wanted.l1_bytes).total_bytes)
    except L1FileUnusable as error:
        raise L1FileUnusable(f"{path}: {error}") from error


def _hugetlbfs_mounts() -> list[Path]:
    try:
        mounts = [line.split() for line in MOUNTS.read_text(errors="replace").splitlines()]
    except OSError:
        return []
    where = [fields[1] for fields in mounts if len(fields) > 2 and fields[2] == "hugetlbfs"]
    return [Path(each.encode().decode("unicode_escape")) for each in where]  # spaces are written as \\040


def _regular_files(folders: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the regular files in some folders, and in the folders in these."""
    for folder in folders:
        for path, about in _entries(folder):
            if stat.S_ISREG(about.st_mode):
                yield path, about
            elif stat.S_ISDIR(about.st_mode):
                for inner in _entries(path):
                    if stat.S_ISREG(inner[1].st_mode):
                        yield inner


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    yield Path(entry.path), entry.stat(follow_symlinks=False)
                except OSError:  # it went away
                    continue
    except OSError:  # this user may not look into it
        return


def _left_over(path: Path) -> LeftOverFacts | None:
    """Return the facts of an L1 file that no process uses. None: it is another file, or in use."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not is_l1(fd) or is_locked(fd):
                return None
        finally:
            os.close(fd)
        contents = inspect(path)
        last = contents.last_store_time or path.stat().st_mtime
    except (OSError, L1FileUnusable):  # it went away, or it is another user's
        return None
    return LeftOverFacts(
        path=str(path),
        size_bytes=contents.size_bytes,
        num_chunks=contents.num_chunks,
        seconds_since_store=max(0.0, time.time() - last),
        owner=contents.owner if contents.owner != os.geteuid() else None,
    )
