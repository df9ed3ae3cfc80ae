"""How much of the processors this process's control group lets it have, in version 1 and in version 2."""

from __future__ import annotations

from pathlib import Path

from kvdepot.memory.available import control_groups

_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def cpu_quota(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float:
    """How many CPUs' time the process gets; infinity where there is no limit."""
    quotas = [float("inf")]
    for folder in control_groups("cpu", root, membership):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal():
            quotas.append(int(quota) / int(period))
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    return min(quotas)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
