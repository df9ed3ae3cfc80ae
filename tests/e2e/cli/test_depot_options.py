"""Commands that call a depot with tenants and TLS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvdepot.cli.app import app
from tests.e2e.access.calling import write_tenants
from tests.e2e.servers import StartServer
from tests.fakes.authority import Authority


@pytest.fixture
async def secured(start_server: StartServer, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """The options for an admin of a depot with TLS."""
    authority = Authority()
    cert, key = authority.issue().write(tmp_path, "depot")
    tenants = write_tenants(
        tmp_path / "tenants.json", {"name": "ops", "token": "o", "admin": True}, {"name": "red", "token": "r"}
    )
    server = await start_server(chunk_size=16, tls_cert=cert, tls_key=key, tenants=tenants)
    (tmp_path / "token").write_text("o\n")
    (tmp_path / "red").write_text("r")
    yield {
        "--address": server.addresses[0],
        "--tls-ca": authority.write(tmp_path),
        "--token-file": str(tmp_path / "token"),
    }


async def run(*arguments: str, options: dict[str, str], **environment: str) -> Any:
    given = [each for option in options.items() for each in option]
    return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *given], env=environment)


@pytest.mark.parametrize("command", [("status", "--json"), ("sessions", "--json"), ("selftest",)])
async def test_a_command_shows_what_it_is_given(command: tuple[str, ...], secured: dict[str, str]) -> None:
    result = await run(*command, options=secured)
    assert result.exit_code == 0, result.output
    if command == ("status", "--json"):
        assert json.loads(result.stdout)["status"]["state"] == "SERVER_STATE_SERVING"


async def test_the_environment_will_do(secured: dict[str, str]) -> None:
    variables = {
        f"KVDEPOT_CLIENT_{name}": secured.pop(f"--{flag}")
        for name, flag in (("TLS_CA", "tls-ca"), ("TOKEN_FILE", "token-file"))
    }
    result = await run("status", options=secured, **variables)
    assert result.exit_code == 0, result.output


async def test_what_is_missing_or_wrong_is_reported(secured: dict[str, str]) -> None:
    for changes, words in (
        ({"--token-file": ""}, "CREDENTIALS_MISSING"),
        ({"--token-file": str(Path(secured["--token-file"]).with_name("red"))}, "ADMIN_ONLY"),
        ({"--token-file": "/nothing/there"}, "No such file"),
        ({"--tls-cert": "/some/cert"}, "give both or none"),
    ):
        options = {name: value for name, value in (secured | changes).items() if value}
        result = await run("status", options=options)
        assert result.exit_code in (1, 2)
        assert words in result.stderr
        assert "Traceback" not in result.stderr
