"""A file that can't be recorded into is named before anything else happens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvdepot.cli.app import app
from service.load_settings import BadSettings, load
from service.recording.setup import check_recording


def check(path: Path) -> None:
    check_recording(load({"record_trace": str(path)}))


def test_what_can_be_recorded_into_is_not_touched(tmp_path: Path) -> None:
    check_recording(load({}))
    check(tmp_path / "new.jsonl")
    assert list(tmp_path.iterdir()) == []
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_text("{}\n")
    check(earlier)
    assert earlier.read_text() == "{}\n"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing/trace.jsonl", "missing: is not a folder"),
        ("link", "link: is not a file"),
        ("folder", "folder: is not a file"),
    ],
)
def test_what_can_not_is_named(name: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(BadSettings, match=f"^record_trace: {tmp_path}/{complaint}$"):
        check(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadSettings, match="no file can be made in it"):
        check(tmp_path / "trace.jsonl")


def test_a_takeover_with_such_a_file_leaves_the_running_depot_alone(tmp_path: Path) -> None:
    listen = ("--listen", f"unix:{tmp_path}/depot.sock", "--takeover")
    result = CliRunner().invoke(app, ["serve", *listen, "--record-trace", str(tmp_path / "missing" / "trace.jsonl")])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[1] == f"record_trace: {tmp_path}/missing: is not a folder"
