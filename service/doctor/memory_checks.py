"""Checks of memory: L1, its pages, and the engines' shared memory."""

from __future__ import annotations

import errno
import os

from kvdepot.cli.terminal import readable_size
from service.doctor.facts import Facts
from service.doctor.findings import Finding, failure, not_applicable, ok, warning
from service.l1.arena import HugePages
from service.l1.format import HUGE_PAGE_BYTES, Layout
from service.settings import Settings

PROCESS_BYTES = 512 << 20
"""What the process needs in addition to L1, without the engines' memory that it maps."""

CONTAINER_SHM_BYTES = 64 << 20
"""The default size of a container's own /dev/shm."""

POPULATING_LINUX = (5, 14)


def l1_memory(facts: Facts, settings: Settings) -> Finding:
    """Check whether L1 fits into the machine and into the cgroup. What L1's file has already counts as there."""
    memory = facts.memory
    if facts.depot_is_running:
        return not_applicable("the running depot has its L1 already")
    if _needs_reserved_pages(facts, settings):
        return not_applicable("L1 is made of reserved huge pages")
    l1_bytes = max(0, settings.l1_size - (facts.l1_file.allocated_bytes if facts.l1_file is not None else 0))
    wanted, needed = readable_size(l1_bytes), readable_size(l1_bytes + PROCESS_BYTES)
    limit = readable_size(memory.cgroup_limit_bytes or 0)
    left_bytes = float("inf")
    if memory.cgroup_limit_bytes is not None:
        left_bytes = memory.cgroup_limit_bytes - memory.cgroup_used_bytes
    if l1_bytes > left_bytes:
        return failure(
            f"{wanted} do not fit into the cgroup's {limit}: {readable_size(memory.cgroup_used_bytes)} are used",
            f"give the container {needed} or more, or lower l1_size",
        )
    if l1_bytes > memory.available_bytes:
        return failure(
            f"{wanted} do not fit: {readable_size(memory.available_bytes)} are available",
            "lower l1_size, or free memory of the machine",
        )
    if l1_bytes + PROCESS_BYTES > left_bytes:
        return warning(
            f"{wanted} leave less than {readable_size(PROCESS_BYTES)} of the cgroup's {limit}: "
            "the kernel may kill the depot",
            f"give the container {needed} or more, and add the size of the engines' buffers in shared memory",
        )
    return ok(f"{wanted} of {readable_size(memory.available_bytes)} that are available")


def huge_pages(facts: Facts, settings: Settings) -> Finding:
    """Check whether the machine has the pages that L1 is made of."""
    if _needs_reserved_pages(facts, settings):
        return _reserved_pages(facts, settings)
    if settings.l1_huge_pages is HugePages.NONE:
        return not_applicable("L1 is made of small pages")
    error = facts.memory.huge_page_error
    if not error:
        return ok("this machine makes huge pages of shared memory")
    if error == errno.EINVAL:
        return warning(
            "this machine makes no huge pages of shared memory: populating L1 takes longer, and copies are slower",
            "run Linux 6.1 or later; if /sys/kernel/mm/transparent_hugepage/shmem_enabled is deny, set it to never; "
            "or set l1_huge_pages to none",
        )
    return warning(
        f"no huge page could be made now: {os.strerror(error)}; parts of L1 may get small pages, with slower copies",
        "free memory, or start the depot soon after the machine; or set l1_huge_pages to none",
    )


def _needs_reserved_pages(facts: Facts, settings: Settings) -> bool:
    in_hugetlbfs = facts.l1_file is not None and facts.l1_file.has_reserved_pages
    return in_hugetlbfs or settings.l1_huge_pages is HugePages.RESERVED


def _reserved_pages(facts: Facts, settings: Settings) -> Finding:
    """Check whether enough reserved pages are free. L1's records lie in the same pages."""
    if facts.depot_is_running:
        return not_applicable("the running depot has its pages already")
    total_bytes = Layout(settings.l1_size).total_bytes
    missing_bytes = max(0, total_bytes - (facts.l1_file.allocated_bytes if facts.l1_file is not None else 0))
    free = readable_size(facts.memory.reserved_huge_page_bytes)
    if facts.memory.reserved_huge_page_bytes >= missing_bytes:
        return ok(f"{free} are reserved and free")
    return failure(
        f"{free} of reserved pages are free, L1 and its records take {readable_size(missing_bytes)}",
        f"sysctl vm.nr_hugepages={-(-total_bytes // HUGE_PAGE_BYTES)} on the node and hugepages-2Mi in the "
        "container's limits, or set l1_huge_pages to transparent",
    )


def populating(facts: Facts, settings: Settings) -> Finding:
    """Check whether the depot can populate L1's pages before it needs them."""
    version = ".".join(map(str, facts.process.linux_version))
    if facts.process.linux_version >= POPULATING_LINUX:
        return ok(f"Linux {version}")
    return warning(
        f"Linux {version} can't populate memory ahead of need: the first store into each page is slow",
        "run Linux 5.14 or later",
    )


def memory_lock(facts: Facts, settings: Settings) -> Finding:
    """Check whether L1 may be pinned for a GPU."""
    limit = facts.memory.memlock_bytes
    if not facts.gpu.cuda.devices:
        return not_applicable("no GPU: nothing is pinned")
    if limit is None or limit >= settings.l1_size:
        return ok("unlimited" if limit is None else readable_size(limit))
    return warning(
        f"{readable_size(limit)} may be locked: a driver that respects the limit can't pin L1",
        "ulimit -l unlimited, LimitMEMLOCK=infinity in the systemd unit, or the container runtime's default limits",
    )


def shared_memory(facts: Facts, settings: Settings) -> Finding:
    """Check whether the depot can see the engines' buffers in shared memory."""
    shared = facts.shared_memory
    if shared.error:
        return failure(
            f"/dev/shm: {shared.error}; engines with buffers in the host's memory can't attach",
            "mount a tmpfs there: the same one that the engines have",
        )
    size = f"/dev/shm has {readable_size(shared.size_bytes)}, {readable_size(shared.free_bytes)} are free"
    if shared.size_bytes <= CONTAINER_SHM_BYTES:
        return warning(
            f"{size}: it is probably this container's own, without the engines' buffers",
            "mount the node's /dev/shm, or one volume into the engines' and the depot's container "
            "(docker: --ipc=host or --shm-size)",
        )
    return ok(size)
