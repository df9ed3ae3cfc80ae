"""The CPU time that the control groups of this process allow it, of version 1 and 2."""

from __future__ import annotations

from pathlib import Path

from kvdepot.memory.available import CGROUP_MEMBERSHIP, CGROUP_ROOT, control_groups, text_of


def cpu_quota(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> float:
    """Return how many CPUs' time the process gets; infinity without a limit."""
    quotas = [float("inf")]
    for folder in control_groups("cpu", root, membership):
        quota, _, period = text_of(folder / "cpu.max").partition(" ")
        if quota.isdecimal():
            quotas.append(int(quota) / int(period))
        quota, period = text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    return min(quotas)
