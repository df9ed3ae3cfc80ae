"""docs/console.md: its commands, settings and links are real, and its pictures are small."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from kvdepot.cli.app import app
from service.settings import Settings

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/console.md").read_text()
MAX_PICTURE_BYTES = 250_000


def test_every_option_of_its_commands_is_there() -> None:
    commands = re.findall(r"^kvdepot (\w+)(.*?)(?:#|$)", PAGE, re.MULTILINE)
    assert {name for name, _ in commands} == {"top", "serve"}
    for name, words in commands:
        explained = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "300"}).output
        for option in re.findall(r"--[a-z-]+", words):
            assert f"{option} " in explained, f"{name} {option}"


def test_every_setting_it_names_is_there() -> None:
    named = set(re.findall(r"`([a-z]+_[a-z_]+)`|\[([a-z]+_[a-z_]+)\]", PAGE))
    names = {name for pair in named for name in pair if name}
    assert {"console_host", "tls_cert", "tls_client_ca", "event_queue_size"} <= names
    assert names <= set(Settings.model_fields)


def test_its_pictures_are_there_and_small() -> None:
    pictures = [REPOSITORY / "docs" / path for path in re.findall(r"!\[.*?\]\((.*?)\)", PAGE)]
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < MAX_PICTURE_BYTES


def test_every_folder_it_names_is_there() -> None:
    for path in re.findall(r"`((?:service|telemetry)/[a-z/_]+)`", PAGE):
        assert (REPOSITORY / path).exists(), path
