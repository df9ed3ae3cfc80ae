"""A disk tier whose writer is killed at any moment: what was acknowledged is there, and nothing is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def kill_writers(folder: Path, seed: int, num_kills: int) -> int:
    """Return how many chunks were compared after all kills."""
    program = subprocess.run(
        [sys.executable, "-m", "tests.fakes.disk_kills", str(folder), str(seed), str(num_kills)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert program.returncode == 0, program.stderr
    return int(program.stdout)


def test_no_kill_loses_or_changes_an_acknowledged_chunk(tmp_path: Path) -> None:
    assert kill_writers(tmp_path / "tier", seed=17, num_kills=50) > 500


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_kills_lose_and_change_no_acknowledged_chunk(tmp_path: Path) -> None:
    assert kill_writers(tmp_path / "tier", seed=18, num_kills=1_000) > 10_000
