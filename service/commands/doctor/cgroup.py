"""What this process's control group lets it have, in version 1 and in version 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
_NO_LIMIT_BYTES = 1 << 62


def memory_limit(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> tuple[int | None, int]:
    """The limit that leaves least, and what is used of it, in bytes; None and 0 where there is none."""
    limits = []
    for folder in _folders("memory", root, membership):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and used is not None and limit < _NO_LIMIT_BYTES:
                limits.append((limit, used))
    return min(limits, key=lambda each: each[0] - each[1], default=(None, 0))


def cpu_quota(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float:
    """How many CPUs' time the process gets; infinity where there is no limit."""
    quotas = [float("inf")]
    for folder in _folders("cpu", root, membership):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal():
            quotas.append(int(quota) / int(period))
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    return min(quotas)


def _folders(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """The group's and those above it, whose limits count as well. In a container the group's is often the root."""
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


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
