"""The example cluster: nodes share KV, a killed node costs no answer, and no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fakes.real_servers import needs
from tests.fakes.waiting import wait_until
from tests.servers.valkey import PROGRAM

LIMIT_SECONDS = 240.0


def cluster(tmp_path: Path, **variables: str) -> subprocess.Popen[str]:
    """Start the cluster. All its processes have the folder in their environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "examples.cluster", "--size", "small"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "100", "TMPDIR": str(tmp_path), **variables},
    )


def processes_of(folder: Path) -> list[str]:
    """Return the commands of the processes that have a folder in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if f"TMPDIR={folder}".encode() in environment.split(b"\0") and command:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def assert_nothing_is_left(folder: Path) -> None:
    # An I/O worker of the killed depot ends when it reads the end of its socket.
    wait_until(lambda: processes_of(folder) == [])
    assert list(folder.iterdir()) == []


@needs(PROGRAM)
def test_each_node_has_hits_and_a_killed_node_costs_no_answer(tmp_path: Path) -> None:
    with cluster(tmp_path) as process:
        output, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert (process.returncode, errors) == (0, ""), output
    lines = output.splitlines()
    assert "Valkey" in lines[0]
    steps = [line.removeprefix("✓ ") for line in lines if line.startswith("✓")]
    assert steps[0] == "three depots start"
    killed = lines.index("✓ engine B moves to node 2, which is killed under it")
    assert lines[killed + 1].startswith("    it notices, computes all 1,")
    assert "All 8 answers are the same tokens with and without depots." in output
    assert_nothing_is_left(tmp_path)


@needs(PROGRAM)
def test_a_stopped_cluster_ends_all_its_processes(tmp_path: Path) -> None:
    with cluster(tmp_path) as process:
        assert process.stdout is not None
        while "three depots start" not in process.stdout.readline():
            assert process.poll() is None
        assert len(processes_of(tmp_path)) > 4, "or else nothing is proven"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert_nothing_is_left(tmp_path)


def test_without_a_server_it_says_what_is_missing(tmp_path: Path) -> None:
    if find_spec("mooncake") is not None:
        pytest.skip("Mooncake is there")
    with cluster(tmp_path, PATH="") as process:
        output, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith("error: no tier to share: ")
    assert "make test-servers" in errors
