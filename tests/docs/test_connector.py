"""docs/connector.md: it has every public name, its program runs, and the calls that it names exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import kvdepot.connector
from kvdepot.connector import ConnectedScheduler, ConnectorWorker

PAGE = (Path(__file__).parents[2] / "docs/connector.md").read_text()


def test_the_table_has_every_public_name_once_and_no_other() -> None:
    section = PAGE.split("## All public names")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(kvdepot.connector.__all__)


@pytest.mark.parametrize(("variable", "side"), [("scheduler", ConnectedScheduler), ("worker", ConnectorWorker)])
def test_each_call_on_the_page_is_one(variable: str, side: type) -> None:
    calls = set(re.findall(rf"\b{variable}\.(\w+)", PAGE))
    assert len(calls) > 3
    assert [call for call in calls if not hasattr(side, call)] == []


def test_the_page_has_every_call_of_both_sides() -> None:
    for side in (ConnectedScheduler, ConnectorWorker):
        calls = {name for name in dir(side) if callable(getattr(side, name)) and not name.startswith("_")}
        public = calls - {"bind"}  # `open_scheduler` calls it
        assert [name for name in sorted(public) if not re.search(rf"\b{name}\b", PAGE)] == []


def test_the_program_opens_both_sides_without_a_depot(monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    opened: list[Any] = []
    for name in ("open_scheduler", "open_worker"):
        monkeypatch.setattr(kvdepot.connector, name, lambda *arguments: opened.append(arguments))
    names: dict[str, Any] = {}
    exec(compile(program, "docs/connector.md", "exec"), names)
    names["in_the_scheduler"]("pool")
    with pytest.raises(AttributeError):
        names["in_a_worker"](1, (), ())  # the stand-in returns no worker to attach
    config, facts = names["config"], names["facts"]
    assert opened == [(config, facts, "pool"), (config, facts, 1)]
    assert config.lookup_timeout_seconds == 0.5
