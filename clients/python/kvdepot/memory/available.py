"""The memory that this process may still take: from the machine, from its control groups, from /dev/shm.

If it takes more, the kernel kills a process. Memory counts as left if it is free, or if the kernel reclaims it
first: the cache of files, as in MemAvailable. Memory in /dev/shm is no such cache, and swap does not count. A control
group's `memory.high` is a limit here like its `memory.max`: beyond it the kernel all but stops the process.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHM = Path("/dev/shm")
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_NO_LIMIT_BYTES = 1 << 62
_LIMITS = (  # of version 2 and of version 1: limit, usage, and the cache of files, in the groups below as well
    ("memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory.high", "memory.current", ("active_file", "inactive_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)


@dataclass(frozen=True, slots=True)
class MemoryLeft:
    """The bytes left of the limit that applies in `place`, such as `the machine`."""

    place: str
    limit_bytes: int
    left_bytes: int


def memory_left(meminfo: Path = _MEMINFO, root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> MemoryLeft:
    """Return the tightest limit: the machine's, or that of a control group around this process."""
    machine, group = in_machine(meminfo), in_control_groups(root, membership)
    return machine if group is None or machine.left_bytes <= group.left_bytes else group


def check_memory(size_bytes: int, memory: MemoryLeft | None = None) -> None:
    """Check that so much memory is left, by default of `memory_left()`. If not, the error is ENOMEM, with both numbers.

    Raises: OSError.
    """
    memory = memory or memory_left()
    if memory.left_bytes < size_bytes:
        raise not_enough(size_bytes, memory.left_bytes, memory.place)


def check_shm(size_bytes: int) -> None:
    """Check that so much memory and so much space in /dev/shm is left. If not, the error is ENOMEM or ENOSPC.

    Without the check, a write to a full /dev/shm is a SIGBUS.

    Raises: OSError.
    """
    check_memory(size_bytes)
    space = os.statvfs(SHM)
    left_bytes = space.f_bavail * space.f_frsize
    if space.f_blocks and left_bytes < size_bytes:  # no blocks: no limit
        raise OSError(errno.ENOSPC, f"{SHM} has space for {_readable(left_bytes)}, not for {_readable(size_bytes)}")


def not_enough(size_bytes: int, left_bytes: int, place: str) -> OSError:
    """Return the error for memory that is not left in `place`."""
    needed, left = _readable(size_bytes), _readable(left_bytes)
    if needed == left:
        needed, left = f"{size_bytes:,} bytes", f"{left_bytes:,} bytes"
    return OSError(errno.ENOMEM, f"{needed} of memory are needed, {place} has {left} left")


def _readable(num_bytes: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes:,} bytes"


def in_machine(meminfo: Path = _MEMINFO) -> MemoryLeft:
    """Return what the machine has left."""
    sizes = _table(meminfo)
    total_bytes = sizes.get("MemTotal:", _NO_LIMIT_BYTES >> 10) << 10
    return MemoryLeft("the machine", total_bytes, sizes.get("MemAvailable:", total_bytes >> 10) << 10)


def in_control_groups(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> MemoryLeft | None:
    """Return what the tightest control group has left, of version 1 or 2; None if none has a limit."""
    found = []
    for folder in control_groups("memory", root, membership):
        for limit_name, used_name, cache_names in _LIMITS:
            limit_bytes, used_bytes = _number(folder / limit_name), _number(folder / used_name)
            if limit_bytes is not None and used_bytes is not None and limit_bytes < _NO_LIMIT_BYTES:
                stat = _table(folder / "memory.stat")
                kept_bytes = max(0, used_bytes - sum(stat.get(name, 0) for name in cache_names))
                found.append(MemoryLeft(f"the cgroup {folder}", limit_bytes, max(0, limit_bytes - kept_bytes)))
    return min(found, key=lambda each: each.left_bytes, default=None)


def control_groups(controller: str, root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> Iterator[Path]:
    """Yield the cgroup folder of the process and the folders above it. The limits of all of them apply.

    In a container the process's own folder is often the root, whatever the membership says.
    """
    for line in text_of(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        folder = top / path.lstrip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _table(path: Path) -> dict[str, int]:
    """Return the numbers of a file that has a name and a number in each line."""
    lines = (line.split() for line in text_of(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _number(path: Path) -> int | None:
    text = text_of(path)
    return int(text) if text.isdecimal() else None


def text_of(path: Path) -> str:
    """Return the text of a file of the kernel, or "" if it can't be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
