"""The command `kvdepot`: every command that speaks to a depot starts quickly, and the help names all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvdepot.cli import server_folder
from kvdepot.cli.app import app
from kvdepot.cli.processes import child
from kvdepot.version import __version__

CLIENT = server_folder.PACKAGE.parent
SERVERS = {"service", "kernels", "telemetry", "opentelemetry", "uvloop", "pydantic_settings"}
OF_CLIENT = (
    *(
        "status",
        "top",
        "sessions",
        "events",
        "explain",
        "pin",
        "pins",
        "unpin",
        "prefetch",
        "clear",
        "health",
        "replay",
    ),
    "selftest",
)
OF_SERVER = ("serve", "doctor", "precompile", "l1")


def test_help_names_every_command_and_the_version() -> None:
    listed = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    for name in (*OF_CLIENT, *OF_SERVER):
        assert f" {name} " in listed.output
    assert __version__ in listed.output


@pytest.mark.parametrize("name", [*OF_CLIENT, *OF_SERVER])
def test_a_command_explains_itself(name: str) -> None:
    explained = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert explained.exit_code == 0
    assert f" {name} [OPTIONS]" in explained.output


def test_an_unknown_command_is_refused() -> None:
    refused = CliRunner().invoke(app, ["nothing"])
    assert refused.exit_code == 2
    assert "No such command 'nothing'" in refused.output


@pytest.mark.parametrize("words", [("-m", "kvdepot"), ("-c", "from kvdepot.cli.app import app; app()")])
def test_the_version_is_told(words: tuple[str, ...]) -> None:
    told = subprocess.run([sys.executable, *words, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"kvdepot {__version__}\n"


def test_without_the_server_its_commands_are_not_listed_and_say_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server_folder, "PACKAGE", tmp_path / "a" / "b" / "c" / "kvdepot")
    listed = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert " status " in listed.output
    assert " serve " not in listed.output
    refused = CliRunner().invoke(app, ["serve", "--l1-size", "1GiB"])
    assert refused.exit_code == 1
    assert "pip install 'kvdepot[server]'" in refused.stderr


def test_a_package_that_the_server_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.commands", raising=False)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    refused = CliRunner().invoke(app, ["serve"])
    assert refused.exit_code == 1
    assert "uvloop" in refused.stderr
    assert "pip install 'kvdepot[server]'" in refused.stderr


def _imported(*arguments: str) -> set[str]:
    """Return the modules that a command has imported when it ends."""
    code = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules))
runpy.run_module("kvdepot", run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(CLIENT)}
    words = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return set(ended.stdout.splitlines()[-1].split())


COMMANDS = [
    "status",
    "sessions",
    "events --follow",
    "explain --session s",
    "pins",
    "unpin x",
    "clear --yes",
    "health",
    "selftest",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_neither_the_server_nor_numpy_nor_another_command(command: str, tmp_path: Path) -> None:
    name, *options = command.split()
    imported = _imported(name, *options, "--address", f"unix:{tmp_path}/absent.sock")
    assert f"kvdepot.cli.{name}" in imported
    assert not {f"kvdepot.cli.{other}" for other in OF_CLIENT if other != name} & imported
    assert not {*SERVERS, "numpy"} & {module.partition(".")[0] for module in imported}


def test_the_version_is_told_without_grpc() -> None:
    assert not {"grpc", "numpy", *SERVERS} & {name.partition(".")[0] for name in _imported("--version")}


def test_a_child_imports_the_server_and_runs_in_its_folder() -> None:
    folder = server_folder.server_folder()
    with child("a test", "-c", "import os, service; print(os.getcwd())") as process:
        assert list(process.lines()) == [str(folder)]
