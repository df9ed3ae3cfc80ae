"""The page of settings is generated from the model, and lists the values of each setting."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from kvdepot.cli.app import app
from service.settings import Settings

PAGE = Path(__file__).parents[2] / "docs/settings.md"


def rows() -> dict[str, list[str]]:
    """Return the cells of each setting's line, without the name."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_every_setting_stands_there_once() -> None:
    names = re.findall(r"^\| `(\w+)`", PAGE.read_text(), re.MULTILINE)
    assert sorted(names) == sorted(Settings.model_fields)


def test_it_says_what_a_setting_takes_and_what_it_is_without() -> None:
    cells_of = rows()
    assert cells_of["l1_size"][:2] == ["size", "`4GiB`"]
    assert cells_of["lease_ttl"][:2] == ["duration", "`60s`"]
    assert cells_of["prometheus_port"][:2] == ["number, 0 to 65,535", "`9464`"]
    assert cells_of["max_attachments"][0] == "number, 1 or more"
    assert cells_of["disable_metrics"][0] == "switch"
    assert cells_of["listen"][0] == "list"
    assert all(cells[-1].endswith(".") for cells in cells_of.values())


def test_what_it_says_of_flags_variables_and_the_file_is_true(tmp_path: Path) -> None:
    named = set(re.findall(r"`(?:--|KVDEPOT_)([A-Za-z0-9_-]+)", PAGE.read_text())) - {"config", "CONFIG"}
    assert {name.lower().replace("-", "_") for name in named} == {"l1_size"}
    file = tmp_path / "settings.yaml"
    file.write_text("unknown: 1\nl1_size: much\nopen_reflection: maybe\n")
    said = CliRunner().invoke(app, ["serve", "--config", str(file)]).stderr
    for fault in ("unknown", "l1_size", "open_reflection"):
        assert f"\n{fault}: " in said
