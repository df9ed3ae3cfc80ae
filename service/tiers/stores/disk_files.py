"""The files of a disk tier: checked, locked, and with all their space reserved.

Nothing is changed in a file before it is clear that it is this user's and a disk tier's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from service.l1.l1_file import allocated_bytes, file_system, open_refusal
from service.tiers.disk.disk_layout import HEADER_BYTES, DiskLayout
from service.tiers.store import StoreError, StoreUnusable
from service.tiers.stores.disk_lock import OWNER_OFFSET, lock
from service.tiers.stores.disk_records import MAGIC, file_id_of, new_header
from service.units import format_size

logger = logging.getLogger(__name__)

RECORDS_NAME, CHUNKS_NAME = "records", "chunks"
NETWORK_FILE_SYSTEMS = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x01021997: "9P",
    0x65735546: "FUSE",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x5346414F: "AFS",
}
_ALLOCATE_PIECE_BYTES = 8 << 30
_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(slots=True)
class DiskFiles:
    """The open files. `chunks_fd` is for O_DIRECT where `is_direct`."""

    records_fd: int
    chunks_fd: int
    file_id: bytes
    is_direct: bool

    def is_deleted(self) -> bool:
        """Return whether one of the files has no name any more."""
        return not (os.fstat(self.records_fd).st_nlink and os.fstat(self.chunks_fd).st_nlink)

    def stop_direct(self) -> None:
        """Go through the page cache from now on."""
        self.is_direct = False
        fcntl.fcntl(self.chunks_fd, fcntl.F_SETFL, fcntl.fcntl(self.chunks_fd, fcntl.F_GETFL) & ~os.O_DIRECT)

    def close(self) -> None:
        """Unlock and close the files."""
        fcntl.flock(self.records_fd, fcntl.LOCK_UN)
        os.close(self.records_fd)
        os.close(self.chunks_fd)


def open_files(folder: Path, layout: DiskLayout) -> DiskFiles:
    """Open the files of a tier; make those that are missing. Chunks of an earlier depot stay, as far as they fit.

    Raises: StoreError: another depot uses them. StoreUnusable.
    """
    fds: list[int] = []
    try:
        folder_fd = _open_folder(folder)
        fds.append(folder_fd)
        records_fd = _open_file(folder, folder_fd, RECORDS_NAME)
        fds.append(records_fd)
        lock(records_fd, folder, lambda: _prepare(folder, folder_fd, records_fd, layout))
        file_id = file_id_of(os.pread(records_fd, HEADER_BYTES, 0))
        if file_id is None:
            raise StoreError(f"{folder / RECORDS_NAME}: its header was changed while it was opened")
        chunks_fd = _open_file(folder, folder_fd, CHUNKS_NAME)
        fds.append(chunks_fd)
        is_direct = _set_direct(chunks_fd)
        if not is_direct:
            logger.warning("disk tier without O_DIRECT: %s", folder)
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, OSError):
            raise StoreUnusable(f"{folder}: {error.strerror}") from error
        raise
    os.close(folder_fd)
    return DiskFiles(records_fd, chunks_fd, file_id, is_direct)


def _open_folder(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise StoreUnusable(f"{folder}: the folder {folder.parent} does not exist") from error
    except (FileExistsError, NotADirectoryError) as error:
        what = "a symbolic link, which is not followed" if folder.is_symlink() else "no folder"
        raise StoreUnusable(f"{folder}: it is {what}") from error
    except OSError as error:
        raise StoreUnusable(f"{folder}: {open_refusal(error)}") from error
    try:
        if os.fstat(fd).st_mode & stat.S_IWOTH:
            raise StoreUnusable(f"{folder}: every user can change it; `chmod o-w` it or name another folder")
        if kind := NETWORK_FILE_SYSTEMS.get(file_system(fd)):
            raise StoreUnusable(
                f"{folder}: it is on {kind}; a disk tier must be on a disk of this machine, because nothing ends a read"
                " from another one that hangs"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_file(folder: Path, folder_fd: int, name: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    path = folder / name
    try:
        fd = os.open(name, flags, 0o600, dir_fd=folder_fd)
    except OSError as error:
        raise StoreUnusable(f"{path}: {open_refusal(error)}") from error
    about = os.fstat(fd)
    mode = stat.S_IMODE(about.st_mode)
    fault = ""
    if not stat.S_ISREG(about.st_mode):
        fault = "it is no regular file"
    elif about.st_uid != os.geteuid():
        fault = f"it belongs to the user {about.st_uid}, this process is {os.geteuid()}"
    elif mode & _FOR_OTHERS:
        fault = f"its mode is {mode:04o}, so others can use it; `chmod 600` it or remove it"
    if fault:
        os.close(fd)
        raise StoreUnusable(f"{path}: {fault}")
    return fd


def _prepare(folder: Path, folder_fd: int, records_fd: int, layout: DiskLayout) -> None:
    """Give the files a header and all their space. This goes on where an earlier try ended.

    Raises: StoreUnusable.
    """
    header = os.pread(records_fd, HEADER_BYTES, 0)
    if header.strip(b"\0") and not header.startswith(MAGIC):
        raise StoreUnusable(f"{folder / RECORDS_NAME}: it is no file of a disk tier, and is left as it is")
    chunks_fd = _open_file(folder, folder_fd, CHUNKS_NAME)
    try:
        if not header.strip(b"\0") and os.fstat(chunks_fd).st_size:
            raise StoreUnusable(f"{folder / CHUNKS_NAME}: it is no file of a disk tier, and is left as it is")
        if file_id_of(header) is None:
            if header.strip(b"\0"):
                logger.warning("disk tier starts empty: the header of %s is damaged or of another format", folder)
            os.pwrite(records_fd, new_header(os.urandom(32)).ljust(OWNER_OFFSET, b"\0"), 0)
            os.fsync(records_fd)  # or a loss of power leaves space for chunks that looks like a foreign file
        sizes = {records_fd: layout.records_bytes, chunks_fd: layout.chunks_bytes}
        for fd, num_bytes in sizes.items():
            if os.fstat(fd).st_size > num_bytes:
                os.ftruncate(fd, num_bytes)  # its chunks at the end go, as the smaller size asks for
        space = os.fstatvfs(folder_fd)
        missing_bytes = sum(max(0, num_bytes - allocated_bytes(fd)) for fd, num_bytes in sizes.items())
        lacking_bytes = missing_bytes - space.f_bavail * space.f_frsize
        if lacking_bytes > 0:
            unit_bytes = _GIB if lacking_bytes > _GIB else _MIB
            lacking, size = format_size(-(-lacking_bytes // unit_bytes) * unit_bytes), format_size(layout.size_bytes)
            raise StoreUnusable(f"{folder}: its file system lacks {lacking} for a tier of {size}")
        for fd, num_bytes in sizes.items():
            _reserve(folder, fd, num_bytes)
    finally:
        os.close(chunks_fd)


def _reserve(folder: Path, fd: int, num_bytes: int) -> None:
    """Give a file this size, with all its space. What it has stays.

    Raises: StoreError, StoreUnusable.
    """
    had_bytes = os.fstat(fd).st_size
    if had_bytes == num_bytes:
        if allocated_bytes(fd) >= num_bytes:
            return
        had_bytes = 0  # there are holes in it
    for offset_bytes in range(had_bytes, num_bytes, _ALLOCATE_PIECE_BYTES):
        _allocate(folder, fd, offset_bytes, min(_ALLOCATE_PIECE_BYTES, num_bytes - offset_bytes))


def _allocate(folder: Path, fd: int, offset_bytes: int, num_bytes: int) -> None:
    # Not posix_fallocate: where a file system can't reserve space, glibc writes into each block instead.
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(fd, 0, offset_bytes, num_bytes) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EINTR:
        raise StoreError(f"{folder}: the reservation of space was interrupted")
    if code in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise StoreUnusable(f"{folder}: its file system can't reserve space; use ext4 or XFS")
    raise StoreUnusable(f"{folder}: it can't get {format_size(num_bytes)}: {os.strerror(code)}")


def _set_direct(fd: int) -> bool:
    """Have reads and writes go past the page cache, where the file system can do that."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        return False
    return True
