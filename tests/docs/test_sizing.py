"""docs/sizing.md: its commands, metrics, links and numbers are real, and its picture is small."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from kvdepot.cli.app import app
from service.l1.ghosts.ghosts import MAX_GROUPS
from service.settings import Settings
from service.sizing.advice import SURE
from service.sizing.report import NUM_NEEDED_USES
from telemetry.metrics.definitions import METRICS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "sizing.md").read_text()
MAX_PICTURE_BYTES = 250_000


def test_every_option_of_its_commands_is_there() -> None:
    explained = CliRunner().invoke(app, ["sizing", "--help"], env={"COLUMNS": "300"}).output
    options = set(re.findall(r"--[a-z-]+", "".join(re.findall(r"^kvdepot sizing.*?(?:#|$)", PAGE, re.MULTILINE))))
    assert options == {"--window", "--model", "--tenant", "--plot", "--json"}
    for option in options:
        assert f"{option} " in explained, option


def test_every_metric_and_setting_it_names_is_there() -> None:
    named = set(re.findall(r"kvdepot_[a-z0-9_]+", PAGE))
    assert len(named) == 2
    assert named <= {metric.prometheus_name for metric in METRICS}
    assert {"l1_size", "eviction"} <= set(Settings.model_fields)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        file, _, anchor = target.partition("#")
        text = (DOCS / file).read_bytes()
        if anchor:
            titles = [line.lstrip("# ").lower() for line in text.decode().splitlines() if line.startswith("#")]
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", title).replace(" ", "-") for title in titles], target


def test_its_picture_is_small() -> None:
    (picture,) = re.findall(r"!\[.*?\]\((.*?)\)", PAGE)
    assert (DOCS / picture).read_bytes().startswith(b"\x89PNG")
    assert (DOCS / picture).stat().st_size < MAX_PICTURE_BYTES


def test_its_numbers_are_those_of_the_code() -> None:
    assert f"fewer than {NUM_NEEDED_USES:,} sampled uses" in PAGE
    assert SURE == 2 and "two standard errors" in PAGE
    assert MAX_GROUPS == 16 and "Sixteen pairs" in PAGE
