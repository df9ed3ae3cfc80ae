"""Shared memory as another process sees it; nothing of it may be left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvdepot.v1 import cache_pb2

SHM = Path("/dev/shm")
CLIENTS = Path(__file__).parents[3] / "clients" / "python"

READ = "import sys; sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"
WRITE = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(int(sys.argv[2])); f.write(sys.argv[3].encode()); f.close()"


@pytest.fixture(params=["name", "fd"])
def by(request: pytest.FixtureRequest) -> Any:
    return request.param


def left_by(pid: int) -> list[Path]:
    """Return the names that a process has left in /dev/shm."""
    return [path for path in SHM.iterdir() if path.name.startswith((f"kvdepot-{pid}-", f"torch_{pid}_"))]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert left_by(os.getpid()) == []


@pytest.fixture
def full_shm(monkeypatch: pytest.MonkeyPatch) -> int:
    """Leave three blocks in /dev/shm, and return a size that is too large."""
    space = os.statvfs(SHM)
    full = os.statvfs_result((*space[:4], 3, *space[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    return 4 * space.f_frsize


def path_of(region: cache_pb2.MemoryRegion) -> str:
    if region.HasField("posix_shm"):
        assert "/" not in region.posix_shm.name
        return f"/dev/shm/{region.posix_shm.name}"
    return f"/proc/{region.process_fd.pid}/fd/{region.process_fd.fd}"


def in_another_process(script: str, *args: Any) -> bytes:
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(command, cwd=CLIENTS, check=True, capture_output=True, timeout=60).stdout
