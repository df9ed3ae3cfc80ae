"""The output of a command can't control the terminal, and an error ends the command with its exit code."""

from __future__ import annotations

import pytest
import typer

from kvdepot.cli.terminal import fail, printable, readable_size


def test_an_error_shows_escapes_and_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as raised:
        fail("\x1b[31m[bold]first\nsecond" + "x" * 200, 3)
    assert raised.value.exit_code == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: \\x1b[31m[bold]first\nsecond" + "x" * 200 + "\n"


@pytest.mark.parametrize(
    ("text", "shown"), [("plain é", "plain é"), ("\x1b]0;t\x07", r"\x1b]0;t\x07"), ("\u202e\n", r"\u202e\n")]
)
def test_what_a_terminal_obeys_or_hides_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 40, "1 TiB"), (1 << 51, "2048 TiB")]
)
def test_sizes_are_in_the_largest_unit_below_them(num_bytes: int, shown: str) -> None:
    assert readable_size(num_bytes) == shown
