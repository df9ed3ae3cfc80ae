"""The demo answers the same with and without the depot, and notices when it does not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvdepot import DepotClient
from kvdepot.cli.app import app
from kvdepot.cli.processes import ChildFailed, child, server_process
from service import demo

needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")


@pytest.mark.slow
@needs_transformers
def test_two_engines_with_different_layouts_answer_the_same_through_the_depot() -> None:
    result = CliRunner().invoke(app, ["demo", "--size", "small"], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for row in ("│ matched in the depot │ 1,024 tokens │", "│ max |Δlogit| │ 0.0 │", "│ identical │ yes │"):
        assert row in lines
    assert any(line.startswith("│ retrieve │") and line.endswith("│ 1,024 │ 4,194,304 │ ok │") for line in lines)


def test_without_transformers_it_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["demo"], env={"COLUMNS": "160"})
    assert result.exit_code == 1
    assert result.stderr == "error: the demo needs transformers: run `make demo`, or pip install -e '.[server,demo]'\n"


@pytest.mark.slow
@needs_transformers
def test_an_engine_without_a_depot_fails_in_one_line(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/missing.sock"
    arguments = ("-m", "examples.demo", "--address", address, "--engine", "a", "--size", "small")
    with child("engine A", *arguments) as engine, pytest.raises(ChildFailed) as raised:
        list(engine.lines())
    assert f"{address}: UNAVAILABLE UNREACHABLE" in str(raised.value)
    assert "Traceback" not in str(raised.value)


@pytest.mark.slow
@needs_transformers
def test_without_cuda_an_engine_for_cuda_fails_in_one_line() -> None:
    arguments = ("-m", "examples.demo", "--address", "unix:/nowhere", "--engine", "a", "--device", "cuda")
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    with child("engine A", *arguments, variables=hidden) as engine, pytest.raises(ChildFailed) as raised:
        list(engine.lines())
    why = "--device cuda: torch finds no CUDA device that it can use"
    assert str(raised.value) == f"engine A ended with exit code 1\n{why}"


@pytest.mark.slow
@needs_transformers
def test_an_engine_that_stays_is_attached_until_it_is_stopped(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "64MiB")
    arguments = ("-m", "examples.demo", "--address", address, "--engine", "a", "--size", "small", "--stay")
    with DepotClient(address) as client:
        with child("engine A", *arguments) as engine, engine.limit(60):
            lines = engine.lines()
            next(line for line in lines if '"answered"' in line)
            time.sleep(1)
            assert client.get_status().num_instances == 1
            os.kill(engine.pid, signal.SIGINT)
            with pytest.raises(ChildFailed) as raised:
                list(lines)
        until = time.monotonic() + 5
        while client.get_status().num_instances:
            assert time.monotonic() < until
    assert str(raised.value) == f"engine A ended with exit code {128 + signal.SIGINT}"


@pytest.mark.slow
@needs_transformers
def test_an_engine_that_stays_ends_with_its_depot_and_says_why() -> None:
    arguments = ("-m", "examples.demo", "--engine", "a", "--size", "small", "--stay", "--address")
    with ExitStack() as depot:
        address = depot.enter_context(server_process("--l1-size", "64MiB"))
        with child("engine A", *arguments, address) as engine, engine.limit(60):
            lines = engine.lines()
            next(line for line in lines if '"answered"' in line)
            depot.close()
            with pytest.raises(ChildFailed) as raised:
                list(lines)
    assert f"{address}: UNAVAILABLE DRAINING: the depot has shut down" in str(raised.value)
