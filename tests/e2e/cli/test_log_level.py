"""`log-level` shows and changes what a running depot logs, and says what is wrong with its arguments."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from kvdepot import DepotClient, DepotError
from kvdepot.cli.app import app
from kvdepot.cli.processes import server_process


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["log-level", *arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with server_process("--l1-size", "8MiB", "--log-level", "warning") as address:
        yield address


def test_a_level_is_shown_changed_and_restored(address: str) -> None:
    at = ("--address", address)
    assert run(*at).stdout == "all  warning\n"
    assert run("debug", *at).stdout == "all  debug\n"
    assert run("ERROR", "--logger", "service.rpc", *at).stdout == "all          debug\nservice.rpc  error\n"
    assert run("--reset", *at).stdout == "all          warning\nservice.rpc  error\n"
    [whole] = json.loads(run("--reset", "--logger", "service.rpc", *at, "--json").stdout)
    assert (whole["logger"], whole["level"]) == ("", "LOG_LEVEL_WARNING")


def test_a_level_for_a_while_says_until_when(address: str) -> None:
    shown = run("info", "--for", "10m", "--address", address).stdout
    assert shown.startswith("all  info  until 2")
    assert "for 600 s more" in shown or "for 599 s more" in shown
    with DepotClient(address) as client:
        [whole] = client.get_status().log_levels
        assert whole.HasField("expire_time")
        client.set_log_level()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("loud",), "'loud' is not debug, info, warning or error"),
        (("info", "--for", "soon"), "--for: 'soon' is not like 30s, 10m or 2h"),
        (("info", "--reset"), "--reset goes with neither a level nor --for"),
        (("--for", "10m"), "name a level, or --reset"),
    ],
)
def test_wrong_arguments_are_named_before_a_call(arguments: tuple[str, ...], error: str) -> None:
    result = run(*arguments, "--address", "unix:/nowhere")
    assert (result.exit_code, result.stderr.strip()) == (2, f"error: {error}")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("info", "--logger", "servce.rpc"), "logger: the depot has no logger 'servce.rpc'; is 'service.rpc' meant?"),
        (("info", "--for", "8d"), "duration: is 691200 s, not above 0 and at most 604800 s"),
        (("info", "--for", "0s"), "duration: is 0 s, not above 0 and at most 604800 s"),
    ],
)
def test_the_depot_says_what_is_wrong(address: str, arguments: tuple[str, ...], error: str) -> None:
    result = run(*arguments, "--address", address)
    assert result.exit_code == 1
    assert error in result.stderr


def test_the_client_takes_no_other_level(address: str) -> None:
    with DepotClient(address) as client:
        with pytest.raises(DepotError, match=r"level: is .loud."):
            client.set_log_level("loud")
        with pytest.raises(DepotError, match="needs a level"):
            client.set_log_level(for_seconds=1.0)
    assert logging.getLogger("service").level == logging.NOTSET
