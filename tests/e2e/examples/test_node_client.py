"""The Node.js example gets back the bytes it stored: the contract can be spoken from its .proto files alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "node"
INSTALLED = EXAMPLE / "node_modules" / ".package-lock.json"

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@pytest.fixture(scope="module")
def installed() -> None:
    """The example's packages, into its node_modules, once."""
    lock = EXAMPLE / "package-lock.json"
    if not INSTALLED.exists() or INSTALLED.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=EXAMPLE, check=True)


def run(address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["node", "client.js", address], cwd=EXAMPLE, capture_output=True, text=True, timeout=60)


@pytest.mark.usefixtures("installed")
def test_bytes_come_back_as_they_were_stored(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "16MiB")
    first, second = run(address), run(address)
    assert first.returncode == 0, first.stderr
    assert "stored 768 tokens (786432 bytes); 0 were there already, 7 are less than a chunk" in first.stdout
    assert "retrieved 786432 bytes: the same" in first.stdout
    assert "ended the session: store, lookup, retrieve" in first.stdout
    assert second.returncode == 0, second.stderr
    assert "stored 0 tokens (0 bytes); 768 were there already" in second.stdout
    assert "retrieved 786432 bytes: the same" in second.stdout


@pytest.mark.usefixtures("installed")
def test_without_a_depot_it_fails_in_one_line(tmp_path: Path) -> None:
    result = run(f"unix:{tmp_path}/missing.sock")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
