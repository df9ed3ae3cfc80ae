"""Mapping: accepted and refused objects, and the release of all that was opened."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kernels.map
from kernels.errors import AccessDenied, BackendError, GeometryError, RegionError
from kernels.geometry import CudaIpc, PosixShm, ProcessFd, Region
from kernels.map import Mapping

PAGE = mmap.PAGESIZE
SIZE = 3 * PAGE + 5


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a shared memory object, which is removed afterwards."""
    name = f"kvdepot-test-{uuid.uuid4().hex}"
    yield name
    path = Path("/dev/shm", name)
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.fixture
def memfds() -> Iterator[list[int]]:
    """Three objects of one size."""
    fds = [os.memfd_create(f"kvdepot-test-{uuid.uuid4().hex}") for _ in range(3)]
    for fd in fds:
        os.ftruncate(fd, SIZE)
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture
def memfd(memfds: list[int]) -> int:
    return memfds[0]


def shm(name: str, size_bytes: int = SIZE) -> Region:
    return Region(size_bytes=size_bytes, handle=PosixShm(name))


def own(fd: int, size_bytes: int = SIZE) -> Region:
    return Region(size_bytes=size_bytes, handle=ProcessFd(os.getpid(), fd))


def map_all(*regions: Region) -> Mapping:
    return Mapping(regions, allow_process_fd=True)


def mappings_of(fd: int) -> list[str]:
    """Return the lines of this process's memory map that are about the object behind a descriptor."""
    inode = str(os.fstat(fd).st_ino)
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if line.split()[4] == inode]


def num_open_fds(fd: int) -> int:
    """Count this process's descriptors of the object behind a descriptor."""
    inode, num_open = os.fstat(fd).st_ino, 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            num_open += entry.stat().st_ino == inode
    return num_open


def test_both_sides_see_each_others_writes(memfd: int) -> None:
    mapping = map_all(own(memfd))
    os.pwrite(memfd, b"engine", 4)
    memory = mapping.memory()
    assert memory[mapping.offsets[0] + 4 :][:6].tobytes() == b"engine"
    memory[SIZE - 5 : SIZE] = np.frombuffer(b"depot", dtype=np.uint8)
    assert os.pread(memfd, 5, SIZE - 5) == b"depot"
    mapping.close()


def test_a_posix_object_is_found_by_name(name: str) -> None:
    Path("/dev/shm", name).write_bytes(b"x" * SIZE)
    mapping = map_all(shm(name))
    assert mapping.memory()[:SIZE].tobytes() == b"x" * SIZE
    assert mapping.mapped_bytes == SIZE
    mapping.close()


def test_regions_of_one_size_are_at_equal_distances_with_a_faulting_page_between(memfds: list[int]) -> None:
    mapping = map_all(*map(own, memfds))
    first, second, third = mapping.offsets
    assert second - first == third - second == 5 * PAGE
    assert mapping.mapped_bytes == 3 * SIZE
    assert [line.split()[1] for fd in memfds for line in mappings_of(fd)] == ["rw-s"] * 3
    start = int(mappings_of(memfds[0])[0].split("-")[0], 16)
    protection = {
        line.split("-")[0]: line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if line
    }
    assert protection[f"{start + 4 * PAGE:x}"] == "---p"
    mapping.close()


def test_every_page_is_there_before_the_first_transfer(memfd: int) -> None:
    assert os.fstat(memfd).st_blocks == 0
    mapping = map_all(own(memfd))
    assert os.fstat(memfd).st_blocks * 512 == 4 * PAGE
    start = mappings_of(memfd)[0].split()[0]
    _, _, details = Path("/proc/self/smaps").read_text().partition(f"{start} ")
    assert next(line for line in details.splitlines() if line.startswith("Rss:")).split()[1] == str(4 * PAGE // 1024)
    mapping.close()


def test_memory_is_made_sure_of_where_linux_cannot_populate(memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.map, "_MADV_POPULATE_WRITE", 999)  # EINVAL, which is what an old kernel says
    mapping = map_all(own(memfd))
    assert os.fstat(memfd).st_blocks * 512 == 4 * PAGE
    mapping.close()


def test_closing_unmaps_at_once_although_views_exist(memfd: int) -> None:
    fds = num_open_fds(memfd)
    mapping = map_all(own(memfd))
    view = mapping.memory()[10:20]
    assert len(mappings_of(memfd)) == 1
    mapping.close()
    assert mappings_of(memfd) == []
    assert view.size == 10
    assert (mapping.mapped_bytes, num_open_fds(memfd)) == (0, fds)
    mapping.close()


def test_regions_of_one_object_are_open_once_and_mapped_once(memfds: list[int]) -> None:
    memfd, other, _ = memfds
    fds, another_fd = num_open_fds(memfd), os.dup(memfd)
    regions = [own(memfd), own(other), own(another_fd), *[own(memfd)] * 20_000]
    mapping = map_all(*regions)
    assert len(mappings_of(memfd)) == 1
    assert num_open_fds(memfd) == fds + 2  # another_fd, and the depot's
    assert mapping.mapped_bytes == 2 * SIZE
    assert mapping.offsets[0] != mapping.offsets[1]
    assert {*mapping.offsets[2:]} == {mapping.offsets[0]}
    mapping.close()
    os.close(another_fd)
    assert num_open_fds(memfd) == fds


def test_regions_of_too_many_objects_are_refused_and_let_go(monkeypatch: pytest.MonkeyPatch, memfds: list[int]) -> None:
    monkeypatch.setattr(kernels.map, "MAX_OBJECTS", 2)
    fds = [num_open_fds(fd) for fd in memfds]
    map_all(*map(own, memfds[:2])).close()
    with pytest.raises(GeometryError, match="more than 2 objects"):
        map_all(*map(own, memfds))
    assert [num_open_fds(fd) for fd in memfds] == fds


class Reserved:
    """Memory of so many bytes."""

    def __init__(self, left_bytes: int) -> None:
        self.left_bytes = left_bytes
        self.asked: list[int] = []

    @contextlib.contextmanager
    def __call__(self, num_bytes: int) -> Iterator[None]:
        self.asked.append(num_bytes)
        if num_bytes > self.left_bytes:
            raise OSError(errno.ENOMEM, f"{self.left_bytes} bytes are left")
        yield


def test_only_untouched_pages_are_reserved_and_once_for_each_object(memfds: list[int]) -> None:
    os.pwrite(memfds[0], b"x", 0)
    os.pwrite(memfds[1], b"x" * SIZE, 0)
    reserved = Reserved(1 << 20)
    regions = [*map(own, memfds), own(memfds[0])]
    mapping = Mapping(regions, allow_process_fd=True, reserve=reserved)
    assert reserved.asked == [2 * SIZE - PAGE]
    mapping.check_size()
    assert len(reserved.asked) == 1  # all are populated
    mapping.close()


def test_memory_that_is_not_left_is_refused_before_it_is_touched(memfd: int) -> None:
    with pytest.raises(RegionError, match=f"{SIZE} bytes .* not populated: {SIZE - 1} bytes are left"):
        Mapping([own(memfd)], allow_process_fd=True, reserve=Reserved(SIZE - 1))
    assert os.fstat(memfd).st_blocks == 0
    assert mappings_of(memfd) == []


def test_holes_that_are_punched_later_need_memory_too(memfd: int) -> None:
    reserved = Reserved(SIZE)
    mapping = Mapping([own(memfd)], allow_process_fd=True, reserve=reserved)
    os.ftruncate(memfd, 0)
    os.ftruncate(memfd, SIZE)
    mapping.check_size()
    reserved.left_bytes = SIZE - 1
    with pytest.raises(RegionError, match=f"{SIZE} bytes"):
        mapping.check_size()
    mapping.close()


def test_what_was_mapped_is_let_go_if_a_later_region_fails(memfd: int, name: str) -> None:
    fds = num_open_fds(memfd)
    with pytest.raises(RegionError):
        map_all(own(memfd), shm(name))
    assert mappings_of(memfd) == []
    assert num_open_fds(memfd) == fds


def test_an_object_outlives_the_process_that_lent_it() -> None:
    lend = f"fd = os.memfd_create('lent'); os.write(fd, b'k' * {SIZE}); print(fd, flush=True)"
    code = f"import os, time; {lend}; time.sleep(60)"
    engine = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert engine.stdout is not None
    mapping = map_all(Region(size_bytes=SIZE, handle=ProcessFd(engine.pid, int(engine.stdout.readline()))))
    engine.kill()
    engine.communicate()
    assert mapping.memory()[:SIZE].tobytes() == b"k" * SIZE
    mapping.check_size()
    mapping.close()


@pytest.mark.parametrize("announced", [SIZE - 1, SIZE + 1, 4 * PAGE, 0])
def test_another_size_than_announced_is_refused(memfd: int, announced: int) -> None:
    with pytest.raises(RegionError, match=r"regions\[1\] has 12293 bytes"):
        map_all(own(memfd), own(memfd, announced))


def test_an_empty_object_is_refused(memfd: int) -> None:
    os.ftruncate(memfd, 0)
    with pytest.raises(RegionError):
        map_all(own(memfd, 0))


@pytest.mark.parametrize("new_size", [SIZE - 1, 0, SIZE + PAGE])
def test_an_object_that_changes_its_size_is_noticed(memfd: int, new_size: int) -> None:
    mapping = map_all(own(memfd))
    mapping.check_size()
    os.ftruncate(memfd, new_size)
    with pytest.raises(RegionError, match=f"{new_size} bytes"):
        mapping.check_size()
    mapping.close()


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "/etc/passwd", "../shm/x", "a\0b", "é" * 128])
def test_what_is_not_a_name_is_refused(bad: str) -> None:
    with pytest.raises(RegionError, match="a name has 1 to 255 bytes"):
        map_all(shm(bad))


def test_a_name_without_an_object_is_unavailable(name: str) -> None:
    with pytest.raises(RegionError, match="No such file"):
        map_all(shm(name))


def test_a_link_is_refused_wherever_it_leads(name: str, memfd: int) -> None:
    Path("/dev/shm", name).symlink_to(f"/proc/{os.getpid()}/fd/{memfd}")
    with pytest.raises(RegionError, match="not shared memory"):
        map_all(shm(name))


def test_a_directory_is_refused(name: str) -> None:
    Path("/dev/shm", name).mkdir()
    with pytest.raises(RegionError, match="not shared memory"):
        map_all(shm(name))


def test_a_fifo_is_refused_and_never_waited_for(name: str) -> None:
    os.mkfifo(f"/dev/shm/{name}")
    with pytest.raises(RegionError, match="not shared memory"):
        map_all(shm(name))


def test_a_descriptor_of_anything_else_is_refused() -> None:
    reader, writer = os.pipe()
    device = os.open("/dev/zero", os.O_RDWR)
    not_in_memory = os.open("/proc/self/status", os.O_RDONLY)  # a regular file
    for fd in (reader, writer, device, not_in_memory):
        with pytest.raises(RegionError, match="not shared memory"):
            map_all(own(fd))
        os.close(fd)


def test_a_descriptor_or_process_that_does_not_exist_is_unavailable(memfd: int) -> None:
    with pytest.raises(RegionError):
        map_all(own(1_000_000))
    with pytest.raises(RegionError):
        map_all(Region(size_bytes=SIZE, handle=ProcessFd(2**31 - 1, memfd)))


def test_a_process_of_another_user_is_forbidden() -> None:
    if os.geteuid() == 0:
        foreign = subprocess.Popen(["sleep", "60"], user=65534)
        pid = foreign.pid
    else:
        foreign, pid = None, 1
    try:
        with pytest.raises(AccessDenied, match="another user"):
            map_all(Region(size_bytes=SIZE, handle=ProcessFd(pid, 0)))
    finally:
        if foreign is not None:
            foreign.kill()
            foreign.wait()


def test_a_descriptor_is_forbidden_unless_allowed(memfd: int) -> None:
    with pytest.raises(AccessDenied):
        Mapping([own(memfd)], allow_process_fd=False)


def test_cuda_memory_names_what_is_missing() -> None:
    region = Region(size_bytes=SIZE, handle=CudaIpc(handle=b"\0" * 64, offset_bytes=0, device_uuid="GPU-0"))
    with pytest.raises(BackendError, match="CuPy"):
        map_all(region)
