"""The commands that the chart's notes name get an answer from a real server."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.helm.conftest import REPOSITORY, Installed
from tests.helm.test_notes import line


def test_the_grpcurl_line_gets_an_answer(default: Installed, start_server_process: Callable[..., str]) -> None:
    """Through `buf curl`, which takes the same address and method."""
    words = shlex.split(line(default.notes, "grpcurl"))
    assert words[:2] == ["grpcurl", "-plaintext"]
    forwarded, method = words[2:]
    assert line(default.notes, "kubectl --namespace inference port-forward").endswith(
        f":{forwarded.rpartition(':')[2]}"
    )
    socket = start_server_process("--l1-size", "16MiB").removeprefix("unix:")
    arguments = ["--protocol", "grpc", "--http2-prior-knowledge", "--unix-socket", socket]
    command = [str(Path(sys.executable).with_name("buf")), "curl", *arguments, f"http://{forwarded}/{method}"]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(asked.stdout)["version"]


def test_the_command_for_a_pod_gets_an_answer(default: Installed, start_server_process: Callable[..., str]) -> None:
    command = re.search(r"exec \S+ -- kvdepot (status --address) (.*)", default.notes)
    assert command is not None
    assert command.group(2) == default.settings["listen"][1]
    address = start_server_process("--l1-size", "16MiB")
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY / "clients" / "python")}
    words = [sys.executable, "-m", "kvdepot", *command.group(1).split(), address]
    asked = subprocess.run(words, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=True)
    assert "serving" in asked.stdout
