"""How much memory this process may still take: what the machine has left, and each control group around the process.

To take more has the kernel kill some process. Left is what is free and what the kernel would reclaim for us first: the
cache of files, which MemAvailable counts for the machine, too. Memory in /dev/shm is no such cache, and swap does not
count. A control group's ``memory.high`` is a limit here like its ``memory.max``: beyond it the kernel all but stops the
process.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
_NO_LIMIT_BYTES = 1 << 62
_LIMITS = (  # of version 2 and of version 1; what is used; the cache of files, of the groups below, too
    ("memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory.high", "memory.current", ("active_file", "inactive_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)


@dataclass(frozen=True, slots=True)
class MemoryLeft:
    """Of ``limit_bytes`` so many are left in ``place``, such as ``the machine``."""

    place: str
    limit_bytes: int
    left_bytes: int


def memory_left() -> MemoryLeft:
    """Where least is left: in the machine, or in a control group around this process."""
    machine, group = in_machine(), in_control_groups()
    return machine if group is None or machine.left_bytes <= group.left_bytes else group


def check_memory(size_bytes: int) -> None:
    """Checks that so much memory is left.

    Raises:
        OSError: ENOMEM, with both numbers, if it is not.
    """
    memory = memory_left()
    if memory.left_bytes < size_bytes:
        raise not_enough(size_bytes, memory.left_bytes, memory.place)


def not_enough(size_bytes: int, left_bytes: int, place: str) -> OSError:
    """What `check_memory` raises."""
    return OSError(errno.ENOMEM, f"{size_bytes} bytes of memory are needed, {place} has {left_bytes} left")


def in_machine(meminfo: Path = _MEMINFO) -> MemoryLeft:
    """What the machine has left."""
    sizes = _table(meminfo)
    total_bytes = sizes.get("MemTotal:", _NO_LIMIT_BYTES >> 10) << 10
    return MemoryLeft("the machine", total_bytes, sizes.get("MemAvailable:", total_bytes >> 10) << 10)


def in_control_groups(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> MemoryLeft | None:
    """What the control group has left that has least, in version 1 and in version 2; None if none has a limit."""
    found = []
    for folder in control_groups("memory", root, membership):
        for limit_name, used_name, cache_names in _LIMITS:
            limit_bytes, used_bytes = _number(folder / limit_name), _number(folder / used_name)
            if limit_bytes is not None and used_bytes is not None and limit_bytes < _NO_LIMIT_BYTES:
                stat = _table(folder / "memory.stat")
                kept_bytes = max(0, used_bytes - sum(stat.get(name, 0) for name in cache_names))
                found.append(MemoryLeft(f"the cgroup {folder}", limit_bytes, max(0, limit_bytes - kept_bytes)))
    return min(found, key=lambda each: each.left_bytes, default=None)


def control_groups(controller: str, root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> Iterator[Path]:
    """Yield the cgroup folder of the process and the folders above it. The limits of all of them apply.

    In a container the process's own is often the root, whatever the membership says.
    """
    for line in _text(membership).splitlines():
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
    """The numbers of a file with a name and a number in each line."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
