"""Run the tests of the class that vLLM loads, in a process of their own with a stub of vLLM and another loop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
STUB = REPOSITORY / "tests" / "fakes" / "vllm_package"


@pytest.mark.parametrize("tests", ["connector_tests", "reporting_tests", "head_shard_tests"])
def test_connector_is_what_vllm_calls(start_server_process: Callable[..., str], tmp_path: Path, tests: str) -> None:
    pytest.importorskip("torch")  # the stub engine's KV caches are tensors
    (tmp_path / "model.safetensors").write_bytes(b"older than the engines")
    address = start_server_process("--chunk-size", "8", "--l1-size", "16MiB")
    path = os.pathsep.join((str(STUB), str(REPOSITORY / "clients" / "python")))
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", Path(__file__).with_name(f"{tests}.py")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path, "KVDEPOT_ADDRESS": address, "KVDEPOT_OLD_MODEL": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
