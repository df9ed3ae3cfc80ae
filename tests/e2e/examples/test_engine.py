"""The example engine: its story, and its tests in a process of their own, where its connector has the event loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo.play import ENGINE_VARIABLES
from tests.e2e.examples.test_cluster import processes_of
from tests.fakes.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

REPOSITORY = Path(__file__).parents[3]
TESTS = Path(__file__).with_name("engine_tests.py")
LIMIT_SECONDS = 280.0  # the machine may be busy


def story(folder: Path) -> subprocess.Popen[str]:
    """Start the story. All its processes have the folder in their environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "examples.engine"],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_story_has_hits_before_and_after_a_restart_and_the_tokens_of_engines_without_a_depot(
    tmp_path: Path,
) -> None:
    with story(tmp_path) as process:
        output, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert (process.returncode, errors) == (0, ""), output
    lines = output.splitlines()
    loaded = [int(line.split("; ")[1].split()[0].replace(",", "")) for line in lines if " answers; " in line]
    assert len(loaded) == 5
    assert loaded[0] == 0
    assert loaded[1:3] == [4 * 1_024, 3 * 1_024]
    assert loaded[4] == 4 * 1_024
    assert "detached from the depot, the engine goes on without it" in output
    assert lines[-1] == ("All 21 answers have the same tokens as without a depot. No block and no session is left.")
    wait_until(lambda: processes_of(tmp_path) == [])


def test_a_stopped_story_ends_all_its_processes(tmp_path: Path) -> None:
    with story(tmp_path) as process:
        assert process.stdout is not None
        assert "engine A answers" in process.stdout.readline()
        assert len(processes_of(tmp_path)) >= 3, "or else nothing is proven"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    wait_until(lambda: processes_of(tmp_path) == [])


@pytest.mark.slow
def test_the_engine_and_the_sides_of_its_connector_keep_their_promises() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", TESTS],
        cwd=REPOSITORY,
        env={**os.environ, **ENGINE_VARIABLES},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
