"""Rows fit a terminal of 80 columns, and lose nothing where no terminal is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from rich.cells import cell_len

from kvdepot.cli.tables import Column, print_rows, shown

COLUMNS = (
    Column("name", min_width=10),
    Column("tokens", right=True),
    Column("bytes", right=True, drop=1),
    Column("model", min_width=6, drop=2),
)
LONG = "request-" + "0123456789" * 8
ROWS = [[LONG, "1,024", "1.5 MiB", "llama"], ["short [bold]", "7", "9 B", "qwen"]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Standard output counts as a terminal of 80 columns without colours."""
    for name, value in (("FORCE_COLOR", "1"), ("NO_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    yield monkeypatch


def test_a_pipe_gets_every_column_of_every_row_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(COLUMNS, ROWS, title="sessions")
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "tokens", "bytes", "model"]
    assert first.split("  ") == [LONG, " 1,024", "1.5 MiB", "llama"]
    assert second.split() == ["short", "[bold]", "7", "9", "B", "qwen"]


def test_no_rows_are_said_to_be_none(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(COLUMNS, [])
    assert capsys.readouterr().out == "none\n"


@pytest.mark.parametrize("width", [80, 40, 20])
def test_a_terminal_folds_names_and_cuts_no_number(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    terminal.setenv("COLUMNS", str(width))
    print_rows(COLUMNS, ROWS, title="sessions")
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "1,024" in " ".join(lines)
    assert "…" not in " ".join(lines)
    names = "".join(line.split()[0] for line in lines[2:] if line.split())
    assert LONG in names


def test_the_least_important_columns_go_first() -> None:
    assert shown(COLUMNS, ROWS, 200) == [0, 1, 2, 3]
    assert shown(COLUMNS, ROWS, 31) == [0, 1, 2, 3]
    assert shown(COLUMNS, ROWS, 30) == [0, 1, 2]
    assert shown(COLUMNS, ROWS, 24) == [0, 1]
    assert shown(COLUMNS, ROWS, 3) == [0, 1]
