"""Exceptions to the linter's rules say why they are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.test_imports import REPOSITORY

EXCEPTION = re.compile(r"#\s*noqa\b(?!: [A-Z0-9]+(?:, [A-Z0-9]+)* - \w)")
GENERATED = REPOSITORY / "clients/python/kvdepot/v1"


def python_files() -> Iterator[Path]:
    """Yield every Python file of the repository that is not generated."""
    for folder in ("service", "kernels", "telemetry", "clients", "tests", "tools", "benchmarks", "examples"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            if not path.is_relative_to(GENERATED) and "node_modules" not in path.parts:
                yield path


def test_each_noqa_names_its_rule_and_a_reason() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in python_files()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if EXCEPTION.search(line)
    ]
    assert found == []
