"""Every command that speaks to a depot starts quickly, on its own and as a command of the server's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvdepot.cli import processes
from kvdepot.cli.__main__ import app
from kvdepot.cli.commands import NAMES
from service.__main__ import app as service_app

SERVERS = {"service", "kernels", "telemetry", "opentelemetry", "uvloop", "pydantic_settings"}


@pytest.mark.parametrize("name", NAMES)
def test_a_command_explains_itself_in_both_places(name: str) -> None:
    helps = [CliRunner().invoke(each, [name, "--help"], env={"COLUMNS": "200"}) for each in (app, service_app)]
    assert [result.exit_code for result in helps] == [0, 0]
    assert helps[0].output.partition("Usage: root")[2] == helps[1].output.partition("Usage: root")[2]


def test_help_names_every_command() -> None:
    for each in (app, service_app):
        listed = CliRunner().invoke(each, ["--help"], env={"COLUMNS": "200"})
        assert listed.exit_code == 0
        for name in NAMES:
            assert name in listed.output


def test_an_unknown_command_is_refused() -> None:
    refused = CliRunner().invoke(app, ["nothing"])
    assert refused.exit_code == 2
    assert "No such command 'nothing'" in refused.output


def _imported(*arguments: str) -> set[str]:
    """Return the modules that a command has imported when it ends."""
    code = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules))
runpy.run_module("kvdepot.cli", run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(processes.REPOSITORY / "clients" / "python")}
    words = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return set(ended.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", ["status", "sessions", "health", "selftest"])
def test_a_command_imports_neither_the_server_nor_numpy_nor_another_command(name: str, tmp_path: Path) -> None:
    imported = _imported(name, "--address", f"unix:{tmp_path}/absent.sock")
    assert f"kvdepot.cli.{name}" in imported
    assert not {f"kvdepot.cli.{other}" for other in NAMES if other != name} & imported
    assert not {*SERVERS, "numpy"} & {module.partition(".")[0] for module in imported}


def test_a_depot_is_started_from_the_packages_that_run_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the image the client is installed, and the server lies in the working folder."""
    folder = processes.REPOSITORY
    monkeypatch.setattr(processes, "REPOSITORY", tmp_path)
    with processes.child("a test", "-c", "import os, service; print(os.getcwd())") as process:
        assert list(process.lines()) == [str(folder)]
