"""`health` answers a probe with its exit code."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kvdepot.cli.app import app
from service.server import Server
from tests.e2e.servers import StartServer

REPOSITORY = Path(__file__).parents[3]


def health(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["health", *arguments])


def test_a_depot_that_serves(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "8MiB")
    for service in ("", "kvdepot.v1.CacheService", "kvdepot.v1.AdminService"):
        result = health("--address", address, "--service", service)
        assert (result.exit_code, result.stdout) == (0, "SERVING\n")
    other = health("--address", address, "--service", "kvdepot.v2.CacheService")
    assert other.exit_code == 1
    assert other.stderr == f"error: {address}: it has no service 'kvdepot.v2.CacheService'\n"


@pytest.mark.parametrize("service", ["", "kvdepot.v1.CacheService"])
async def test_a_depot_that_drains_does_not_serve(start_server: StartServer, service: str) -> None:
    server: Server = await start_server()
    server._health.drain()
    result = await asyncio.to_thread(health, "--address", server.addresses[0], "--service", service)
    assert (result.exit_code, result.stdout) == (1, "NOT_SERVING\n")


def test_no_depot(tmp_path: Path) -> None:
    result = health("--address", f"unix:{tmp_path}/absent.sock")
    assert result.exit_code == 1
    problem, hint = result.stderr.splitlines()
    assert problem == f"error: unix:{tmp_path}/absent.sock: there is no socket {tmp_path}/absent.sock"
    assert hint.startswith("hint: start a depot with `kvdepot serve`")


def test_alone_it_does_not_load_the_server(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "8MiB")
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY / "clients" / "python")}
    words = [sys.executable, "-X", "importtime", "-m", "kvdepot.cli.health", "--address", address]
    asked = subprocess.run(words, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=True)
    assert asked.stdout == "SERVING\n"
    loaded = {line.rpartition("|")[2].strip() for line in asked.stderr.splitlines()}
    assert "grpc" in loaded
    assert not {"service.server", "service.depot.depot", "numpy", "opentelemetry", "uvloop"} & loaded
    only_after_a_failure = {"kvdepot.cli.unreachable", "kvdepot.cli.probe", "kvdepot.sync.client", "rich.console"}
    assert not only_after_a_failure & loaded
