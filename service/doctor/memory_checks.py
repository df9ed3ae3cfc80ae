"""Memory: L1's, the engines' that is shared, and what pages they are of."""

from __future__ import annotations

from kvdepot.cli.terminal import readable_size
from service.doctor.facts import Facts
from service.doctor.findings import Finding, failure, not_applicable, ok, warning
from service.l1.arena import HUGE_PAGE_BYTES, HugePages
from service.settings import Settings

BESIDES_L1_BYTES = 512 << 20
"""What the process takes on top of L1, without the engines' memory that it maps."""

CONTAINERS_OWN_BYTES = 64 << 20
"""The size of the /dev/shm that a container gets by default."""

POPULATING_LINUX = (5, 14)


def l1_memory(facts: Facts, settings: Settings) -> Finding:
    """Whether L1 fits into the machine and into the cgroup."""
    check, memory = "memory for L1", facts.memory
    wanted = readable_size(settings.l1_size)
    if facts.depot_is_running:
        return not_applicable(check, "the depot that runs has its L1 already")
    if settings.l1_huge_pages is HugePages.RESERVED:
        return not_applicable(check, "L1 is made of reserved huge pages")
    limit = memory.cgroup_limit_bytes
    if limit is not None and settings.l1_size > limit - memory.cgroup_used_bytes:
        return failure(
            check,
            f"{wanted} do not fit into the cgroup's {readable_size(limit)}, of which "
            f"{readable_size(memory.cgroup_used_bytes)} are used",
            f"give the container {readable_size(settings.l1_size + BESIDES_L1_BYTES)} or more, or lower l1_size",
        )
    if settings.l1_size > memory.available_bytes:
        return failure(
            check,
            f"{wanted} do not fit: {readable_size(memory.available_bytes)} are available",
            "lower l1_size, or free memory of the machine",
        )
    if limit is not None and settings.l1_size + BESIDES_L1_BYTES > limit - memory.cgroup_used_bytes:
        return warning(
            check,
            f"{wanted} leave less than {readable_size(BESIDES_L1_BYTES)} of the cgroup's {readable_size(limit)}: "
            "the kernel may kill the depot",
            f"give the container {readable_size(settings.l1_size + BESIDES_L1_BYTES)} or more, and add the engines' "
            "buffers if these are in shared memory",
        )
    return ok(check, f"{wanted} of {readable_size(memory.available_bytes)} that are available")


def huge_pages(facts: Facts, settings: Settings) -> Finding:
    """Whether the pages are there that L1 is to be made of."""
    check, memory = "huge pages", facts.memory
    if settings.l1_huge_pages is HugePages.NONE:
        return not_applicable(check, "L1 is made of small pages")
    if settings.l1_huge_pages is HugePages.TRANSPARENT:
        if memory.transparent_huge_pages in ("always", "madvise"):
            return ok(check, f"transparent: {memory.transparent_huge_pages}")
        return warning(
            check,
            "transparent huge pages are off: to populate L1 takes longer, and copies are slower",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled on the node, or set l1_huge_pages to none",
        )
    if facts.depot_is_running:
        return not_applicable(check, "the depot that runs has its pages already")
    if memory.reserved_huge_page_bytes >= settings.l1_size:
        return ok(check, f"{readable_size(memory.reserved_huge_page_bytes)} are reserved and free")
    return failure(
        check,
        f"{readable_size(memory.reserved_huge_page_bytes)} of reserved pages are free, L1 takes "
        f"{readable_size(settings.l1_size)}",
        f"sysctl vm.nr_hugepages={-(-settings.l1_size // HUGE_PAGE_BYTES)} on the node and hugepages-2Mi in the "
        "container's limits, or set l1_huge_pages to transparent",
    )


def populating(facts: Facts, settings: Settings) -> Finding:
    """Whether L1's pages can be made ahead of need."""
    check = "populating L1"
    version = ".".join(map(str, facts.process.linux_version))
    if facts.process.linux_version >= POPULATING_LINUX:
        return ok(check, f"Linux {version}")
    return warning(
        check,
        f"Linux {version} can't populate memory ahead of need: the first store into each page is slow",
        "run Linux 5.14 or later",
    )


def memory_lock(facts: Facts, settings: Settings) -> Finding:
    """Whether L1 may be pinned for a GPU."""
    check, limit = "memlock", facts.memory.memlock_bytes
    if not facts.gpu.cuda.devices:
        return not_applicable(check, "no GPU: nothing is pinned")
    if limit is None or limit >= settings.l1_size:
        return ok(check, "unlimited" if limit is None else readable_size(limit))
    return warning(
        check,
        f"{readable_size(limit)} may be locked: a driver that keeps to it can't pin L1",
        "ulimit -l unlimited, LimitMEMLOCK=infinity in the systemd unit, or the container runtime's default limits",
    )


def shared_memory(facts: Facts, settings: Settings) -> Finding:
    """Whether engines' buffers in shared memory can be seen."""
    check, shared = "shared memory", facts.shared_memory
    if shared.problem:
        return failure(
            check,
            f"/dev/shm: {shared.problem}; engines with buffers in the host's memory can't attach",
            "mount a tmpfs there: the same one that the engines have",
        )
    size = f"/dev/shm has {readable_size(shared.size_bytes)}, of which {readable_size(shared.free_bytes)} are free"
    if shared.size_bytes <= CONTAINERS_OWN_BYTES:
        return warning(
            check,
            f"{size}: it is probably this container's own, where no engine's buffer is",
            "mount the node's /dev/shm, or one volume into the engines' and the depot's container "
            "(docker: --ipc=host or --shm-size)",
        )
    return ok(check, size)
