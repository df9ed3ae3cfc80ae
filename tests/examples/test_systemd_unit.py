"""The unit file fits the depot: what it waits for, how long, and the flags that it gives."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from kvdepot.cli.app import app
from service.serve import END_SECONDS, EXIT_SECONDS
from service.settings import Settings

UNIT = Path(__file__).parents[2] / "examples" / "systemd" / "kvdepot.service"


@pytest.fixture(scope="module")
def service() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment] # keep the case of names
    parser.read(UNIT)
    return dict(parser["Service"])


def test_systemd_keeps_the_memory(service: dict[str, str]) -> None:
    assert service["FileDescriptorStoreMax"] == "1"
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"


def test_systemd_waits_for_the_drain(service: dict[str, str]) -> None:
    assert int(service["TimeoutStopSec"]) >= Settings.model_fields["drain_timeout"].default + END_SECONDS + EXIT_SECONDS


def test_the_depot_takes_the_flags(service: dict[str, str]) -> None:
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "kvdepot"
    group: Any = get_command(app)
    parsed = group.get_command(typer.Context(group), command).make_context(command, arguments)
    assert "unix:/run/kvdepot/kvdepot.sock" in parsed.params["listen"]


def test_the_socket_is_in_the_folder_that_systemd_makes(service: dict[str, str]) -> None:
    assert f"unix:/run/{service['RuntimeDirectory']}/" in service["ExecStart"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/kvdepot/bin/kvdepot", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60, check=False
    )
    assert (verified.returncode, [line for line in verified.stderr.splitlines() if UNIT.name in line]) == (0, [])
