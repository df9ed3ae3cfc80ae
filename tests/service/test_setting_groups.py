"""Each setting is in one group, and the help shows the groups at 80 columns."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from kvdepot.cli.app import app
from service.setting_groups import NAMES_IN_GROUPS, OTHER, setting_groups
from service.settings import Settings


def test_each_setting_is_in_one_group() -> None:
    assert sorted(NAMES_IN_GROUPS) == sorted(Settings.model_fields)
    assert OTHER not in setting_groups()


def test_the_help_has_a_panel_for_each_group_with_all_its_options_at_80_columns() -> None:
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "80"}).stdout
    panels = dict(re.findall(r"╭─ ([\w ]+) ─+╮\n(.*?)╰─", shown, re.DOTALL))
    for title, names in setting_groups().items():
        options = re.findall(r"│ --([\w-]+)", panels[title])
        assert [option.replace("-", "_") for option in options] == list(names)
    assert max(map(len, shown.splitlines())) <= 80
    assert "(default: 4GiB)" in panels["The cache"]
    assert "…" not in panels["Callers"]
