"""The demo answers the same with and without the depot, and notices when it does not."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.__main__ import app
from service.commands import demo
from service.commands.processes import child

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
    address = f"unix:{tmp_path}/nobody.sock"
    arguments = ("-m", "examples.demo", "--address", address, "--engine", "a", "--size", "small")
    with child("engine A", *arguments) as engine, pytest.raises(demo.ChildFailed) as raised:
        list(engine.lines())
    assert f"{address}: UNAVAILABLE UNREACHABLE" in str(raised.value)
    assert "Traceback" not in str(raised.value)
