"""Tables of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

GENERATED = "<!-- Made by `make docs` from the code: what is changed here is lost. -->"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. A cell may hold any text of one line."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
