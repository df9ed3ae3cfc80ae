"""Gathers the facts of a disk tier: its folder, its file system, and who uses it. It changes nothing."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from service.doctor.facts import DiskTierFacts, FileSystem
from service.l1.l1_file import allocated_bytes, file_system, open_refusal
from service.tiers.address.address import TierAddress
from service.tiers.stores.disk_files import CHUNKS_NAME, NETWORK_FILE_SYSTEMS, RECORDS_NAME
from service.tiers.stores.disk_lock import OWNER_BYTES, OWNER_OFFSET, pid_of
from service.tiers.stores.disk_records import MAGIC

_MEMORY = frozenset((0x01021994, 0x858458F6))  # tmpfs, ramfs
_OVERLAY = 0x794C7630


class _Unusable(Exception):
    """The folder can't hold the tier. The message says why."""


def facts_of(address: TierAddress) -> DiskTierFacts:
    """Return the facts of the tier's folder, or of the one that it would be made in."""
    folder = Path(address.path)
    try:
        fd = _open_folder(folder)
    except _Unusable as error:
        return DiskTierFacts(error=str(error))
    try:
        kind = file_system(fd)
        space = os.fstatvfs(fd)
        sizes = [_size_and_user(folder, name) for name in (RECORDS_NAME, CHUNKS_NAME)] if folder.is_dir() else []
        return DiskTierFacts(
            is_new=not any(num_bytes for num_bytes, _ in sizes),
            file_system=_kind(kind),
            free_bytes=space.f_bavail * space.f_frsize + sum(num_bytes for num_bytes, _ in sizes),
            can_read_directly=_can_read_directly(folder if folder.is_dir() else folder.parent),
            used_by=next((user for _, user in sizes if user is not None), None),
        )
    except _Unusable as error:
        return DiskTierFacts(error=str(error))
    except OSError as error:
        return DiskTierFacts(error=open_refusal(error))
    finally:
        os.close(fd)


def _open_folder(folder: Path) -> int:
    """Open the folder, or its parent if the depot would make it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        fd = os.open(folder, flags | os.O_NOFOLLOW)
    except FileNotFoundError:
        try:
            fd = os.open(folder.parent, flags)
        except FileNotFoundError as error:
            raise _Unusable(f"there is no folder {folder.parent}") from error
        except OSError as error:
            raise _Unusable(f"{folder.parent}: {open_refusal(error)}") from error
        if not os.access(folder.parent, os.W_OK | os.X_OK):
            os.close(fd)
            raise _Unusable(f"this user can't make a folder in {folder.parent}") from None
        return fd
    except OSError as error:
        what = "it is a symbolic link, which is not followed" if folder.is_symlink() else open_refusal(error)
        raise _Unusable(what) from error
    about = os.fstat(fd)
    fault = ""
    if about.st_mode & stat.S_IWOTH:
        fault = "every user can change it"
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        fault = "this user may not write there"
    if fault:
        os.close(fd)
        raise _Unusable(fault)
    return fd


def _kind(magic: int) -> FileSystem:
    if magic in NETWORK_FILE_SYSTEMS:
        return FileSystem.NETWORK
    if magic in _MEMORY:
        return FileSystem.MEMORY
    return FileSystem.OVERLAY if magic == _OVERLAY else FileSystem.DISK


def _size_and_user(folder: Path, name: str) -> tuple[int, int | None]:
    """Return the bytes that a file of the tier has on disk, and the process that uses it, as `used_by` has it."""
    path = folder / name
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return 0, None
    except OSError as error:
        raise _Unusable(f"{name}: {open_refusal(error)}") from error
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise _Unusable(f"{name} is no regular file")
        if about.st_uid != os.geteuid():
            raise _Unusable(f"{name} belongs to the user {about.st_uid}, this process is {os.geteuid()}")
        if stat.S_IMODE(about.st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            raise _Unusable(f"{name} has the mode {stat.S_IMODE(about.st_mode):04o}, so others can use it")
        if name == RECORDS_NAME:
            start = os.pread(fd, len(MAGIC), 0)
            if start.strip(b"\0") and start != MAGIC:
                raise _Unusable(f"{name} is no file of a disk tier")
            if _is_in_use(fd):
                pid = pid_of(os.pread(fd, OWNER_BYTES, OWNER_OFFSET))
                return allocated_bytes(fd), int(pid) if pid.isdecimal() else 0
        return allocated_bytes(fd), None
    finally:
        os.close(fd)


def _is_in_use(fd: int) -> bool:
    """Return whether a depot uses the files. Its I/O workers share the lock. Those that start now wait for this."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _can_read_directly(folder: Path) -> bool | None:
    """Try O_DIRECT on a file that has no name. None: the file system has no such files."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError:
        try:
            os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError:
            return None
        return False
    return True
