"""The memory that is left: the least of the machine and of each control group around the process."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kvdepot.memory.available import MemoryLeft, check_memory, in_control_groups, in_machine, memory_left


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def in_groups(root: Path, membership: str) -> MemoryLeft | None:
    (root / "membership").write_text(membership)
    return in_control_groups(root, root / "membership")


def test_a_group_around_the_process_may_leave_least(tmp_path: Path) -> None:
    group(tmp_path / "kubepods", memory__max="1000\n", memory__current="900\n")
    group(tmp_path / "kubepods/pod1", memory__max="500\n", memory__current="300\n")
    group(tmp_path / "kubepods/pod1/depot", memory__max="max\n", memory__current="300\n")
    assert in_groups(tmp_path, "0::/kubepods/pod1/depot\n") == MemoryLeft(f"the cgroup {tmp_path}/kubepods", 1000, 100)


def test_the_cache_of_files_is_left_and_shared_memory_is_not(tmp_path: Path) -> None:
    stat = "anon 100\nfile 700\nshmem 200\ninactive_file 300\nactive_file 200\n"
    group(tmp_path, memory__max="1000\n", memory__current="900\n", memory__stat=stat)
    assert in_groups(tmp_path, "0::/\n") == MemoryLeft(f"the cgroup {tmp_path}", 1000, 600)


def test_beyond_memory_high_the_kernel_stops_the_process(tmp_path: Path) -> None:
    group(tmp_path, memory__max="1000\n", memory__high="800\n", memory__current="500\n")
    assert in_groups(tmp_path, "0::/\n") == MemoryLeft(f"the cgroup {tmp_path}", 800, 300)


def test_limits_of_version_1_count_where_their_controller_is(tmp_path: Path) -> None:
    stat = "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 50\n"
    files = {"memory__limit_in_bytes": "700", "memory__usage_in_bytes": "600", "memory__stat": stat}
    group(tmp_path / "memory/pods/pod", **files)
    group(tmp_path / "memory/pods", **{**files, "memory__limit_in_bytes": "650"})
    group(tmp_path / "memory", memory__limit_in_bytes=str((1 << 63) - 4096), memory__usage_in_bytes="9")
    membership = "4:memory:/pods/pod\n3:cpuset:/other\n2:cpu,cpuacct:/pod\n0::/\n"
    assert in_groups(tmp_path, membership) == MemoryLeft(f"the cgroup {tmp_path}/memory/pods", 650, 300)


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path, memory__max="1000\n", memory__current="400\n")
    for membership in ("0::/\n", "0::/kubepods/pod1\n", "0::/../../other\n"):
        assert in_groups(tmp_path, membership) == MemoryLeft(f"the cgroup {tmp_path}", 1000, 600)


def test_more_than_the_limit_leaves_nothing(tmp_path: Path) -> None:
    group(tmp_path, memory__max="1000\n", memory__current="1400\n")
    assert in_groups(tmp_path, "0::/\n") == MemoryLeft(f"the cgroup {tmp_path}", 1000, 0)


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    group(tmp_path, memory__max="max\n", memory__current="5\n")
    assert in_groups(tmp_path, "0::/\n") is None
    assert in_control_groups(tmp_path, tmp_path / "none") is None


def test_the_machines_is_read_in_kib(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  24683520 kB\nMemFree: 1 kB\nMemAvailable:  22964992 kB\n")
    assert in_machine(tmp_path / "meminfo") == MemoryLeft("the machine", 24683520 << 10, 22964992 << 10)


@pytest.mark.parametrize("group_bytes, left_bytes, place", [(9000, 4096, "the machine"), (600, 600, "the cgroup ")])
def test_too_much_for_the_tightest_limit_is_refused_with_both_numbers(
    tmp_path: Path, group_bytes: int, left_bytes: int, place: str
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4 kB\n")
    (tmp_path / "membership").write_text("0::/\n")
    group(tmp_path, memory__max=f"{group_bytes}\n", memory__current="0\n")
    memory = memory_left(tmp_path / "meminfo", tmp_path, tmp_path / "membership")
    with pytest.raises(
        OSError, match=f"5,000 bytes of memory are needed, {place}.* has {left_bytes:,} bytes left"
    ) as raised:
        check_memory(5000, memory)
    assert raised.value.errno == errno.ENOMEM
    check_memory(600, memory)
