"""With JSON, each line of both outputs is an object: from a bad setting on, to a crash."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SERVE = ("-m", "kvdepot", "serve", "--listen", "127.0.0.1:0", "--l1-size", "8MiB", "--disable-metrics")
JSON = ("--log-format", "json")
CRASHING = """
import sys, threading
from kvdepot.cli.app import app
import service.commands

async def broken(*_, **__):
    threading.Thread(target=lambda: 1 / 0, name="worker").start()
    raise KeyError("a bug")

service.commands.run_server = broken
sys.argv = ["kvdepot", "serve", "--log-format", "json"]
app()
"""


def run(
    *arguments: str, stop: bool = False, environment: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, list[str]]:
    """Run Python until it ends. Return its exit code, and the lines of standard output and error as one."""
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))
    own = {name: value for name, value in os.environ.items() if not name.startswith("KVDEPOT_")}
    with subprocess.Popen(
        [sys.executable, *arguments],
        env={**own, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if stop and "serves on" in line:
                process.send_signal(signal.SIGTERM)
        return process.wait(60), lines


def objects(lines: list[str]) -> list[dict[str, Any]]:
    made = [json.loads(line) for line in lines]
    assert all(each.keys() >= {"time", "level", "logger", "message"} for each in made)
    return made


@pytest.mark.parametrize("asked_by", ["variable", "file"])
def test_bad_settings_are_one_object(tmp_path: Path, asked_by: str) -> None:
    config = tmp_path / "kvdepot.yaml"
    config.write_text("log_format: json\n")
    flags = ("--config", str(config)) if asked_by == "file" else ()
    by_variable = {"KVDEPOT_LOG_FORMAT": "json"} if asked_by == "variable" else {}
    code, lines = run(*SERVE, *flags, "--chunk-size", "0", "--lease-ttl", "soon", environment=by_variable)
    [said] = objects(lines)
    assert (code, said["level"], said["message"]) == (2, "CRITICAL", "BadSettings")
    assert sorted(fault.partition(":")[0] for fault in said["faults"]) == ["chunk_size", "lease_ttl"]


def test_an_address_that_is_taken_is_one_object() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, lines = run(*SERVE, *JSON, "--listen", address)
    said = objects(lines)[-1]
    assert (code, said["message"]) == (1, "CannotStart")
    assert said["faults"] == [f"{address} is taken, or not an address of this machine"]


def test_all_lines_of_a_servers_life_are_objects_and_tell_what_it_is_and_what_it_cut() -> None:
    code, lines = run(*SERVE, *JSON, stop=True, environment={"KVDEPOT_CHUNK_SIZ": "16"})
    said = {each["message"]: each for each in objects(lines)}
    assert code == 0
    assert any("KVDEPOT_CHUNK_SIZ is no setting" in message for message in said)
    [ready] = [message for message in said if message.startswith("kvdepot serves on 127.0.0.1:")]
    started, stopped = said["ServerStarted"], said["ServerStopped"]
    assert started["listen"] == [ready.removeprefix("kvdepot serves on ")]
    assert (started["l1_bytes"], started["chunk_size"]) == (8 << 20, 256)
    assert (started["has_tenants"], started["has_tls"], started["http_address"]) == (False, False, "")
    assert started["build"].startswith("Python 3.")
    assert [stopped[name] for name in stopped if name.startswith("num_")] == [0, 0, 0, 0, 0]
    assert 0 <= stopped["duration_seconds"] <= stopped["uptime_seconds"] < 60


def test_a_crash_is_an_object_with_its_traceback() -> None:
    code, lines = run("-c", CRASHING)
    said = {each["message"].split()[0]: each for each in objects(lines)}
    assert code == 1
    assert said["Crashed"]["exception"].endswith("KeyError: 'a bug'")
    assert said["ThreadCrashed"]["exception"].endswith("ZeroDivisionError: division by zero")


def test_text_stays_text() -> None:
    code, lines = run(*SERVE, stop=True)
    assert code == 0
    assert not any(line.startswith("{") for line in lines)
