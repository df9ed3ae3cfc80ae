"""What a server logs when it starts, and settings that it refuses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml

from kvdepot.cli.processes import ANY_PORT, child
from service.load_settings import BadSettings
from tests.e2e.access.calling import sha256
from tests.e2e.servers import StartServer


def test_a_server_warns_of_a_variable_that_is_nearly_a_setting() -> None:
    variables = {"KVDEPOT_L1_SIZ": "8GiB"}
    arguments = ("-m", "kvdepot", "serve", "--listen", "127.0.0.1:0", *ANY_PORT, "--l1-size", "16MiB")
    with child("the depot", *arguments, variables=variables) as server:
        next(server.lines())
        os.kill(server.pid, signal.SIGTERM)
        assert "KVDEPOT_L1_SIZ is no setting and is ignored: is KVDEPOT_L1_SIZE meant?" in str(server.failure())


def test_a_process_with_bad_settings_ends_with_2_and_a_line_for_each() -> None:
    with child("the depot", "-m", "kvdepot", "serve", "--chunk-size", "0", "--log-level", "loud") as process:
        assert list(process._output) == []
        failure = str(process.failure())
    assert "exit code 2" in failure
    assert "kvdepot: bad settings\nchunk_size: " in failure
    assert "Traceback" not in failure
    assert len(failure.splitlines()) == 4


async def test_a_server_with_a_broken_file_does_not_start(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump({"tenants": [{"name": "A", "tokens": [sha256("one")]}, {"name": "b", "x": 1}]}))
    with pytest.raises(BadSettings) as caught:
        await start_server(tenants=str(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("tenants: tenants[") for line in lines)
