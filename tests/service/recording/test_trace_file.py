"""The file has a bound, belongs to its owner alone, and never replaces an earlier recording."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from service.recording import trace_file
from service.recording.trace_file import NUM_PARTS, CannotRecord, TraceFile

MAX_BYTES = 800  # a part has 100


def lines(first: int, num: int) -> list[str]:
    """Return lines of 10 bytes."""
    return [f"{number:09}\n" for number in range(first, first + num)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def parts(path: Path) -> list[int]:
    return sorted(int(each.suffix[1:]) for each in path.parent.glob(f"{path.name}.*"))


def recorded(path: Path) -> str:
    """Return all parts, the oldest first."""
    files = [path.with_name(f"{path.name}.{number}") for number in parts(path)]
    return "".join(each.read_text() for each in (*files, path))


def test_only_the_owner_can_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        file = TraceFile(path, MAX_BYTES)
    finally:
        os.umask(before)
    file.append(lines(0, 11))
    assert parts(path) == [1]
    for each in (path, path.with_name("trace.jsonl.1")):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600


def test_an_empty_file_of_others_is_used_and_closed_to_them(path: Path) -> None:
    path.touch(0o644)
    TraceFile(path, MAX_BYTES).append(lines(0, 1))
    assert (stat.S_IMODE(path.stat().st_mode), parts(path)) == (0o600, [])


def test_the_newest_lines_stay_within_the_bound(path: Path) -> None:
    file = TraceFile(path, MAX_BYTES)
    for number in range(0, 500, 5):
        file.append(lines(number, 5))
        files = list(path.parent.iterdir())
        assert sum(each.stat().st_size for each in files) <= MAX_BYTES
        assert max(each.stat().st_size for each in files) <= MAX_BYTES // NUM_PARTS
    assert file.num_lines == 500
    kept = recorded(path)
    assert "".join(lines(0, 500)).endswith(kept)
    assert len(kept) > MAX_BYTES * 6 // 8
    assert parts(path)[-1] == 49, "a number was used twice"


def test_a_line_that_is_longer_than_a_part_is_whole(path: Path) -> None:
    file = TraceFile(path, MAX_BYTES)
    long = "x" * 250 + "\n"
    file.append([*lines(0, 1), long, *lines(1, 1)])
    assert recorded(path) == lines(0, 1)[0] + long + lines(1, 1)[0]


def test_an_earlier_recording_keeps_its_lines_under_a_number(path: Path) -> None:
    for number in range(3):
        file = TraceFile(path, MAX_BYTES)
        file.append(lines(number, 1))
        file.close()
        TraceFile(path, MAX_BYTES).close()  # one without a request leaves nothing
    assert parts(path) == [1, 2, 3]
    assert recorded(path) == "".join(lines(0, 3))
    assert path.read_text() == ""


def test_many_short_recordings_have_a_bound_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "MAX_FILES", 5)
    for number in range(20):
        file = TraceFile(path, 1 << 20)
        file.append(lines(number, 1))
        file.close()
    assert parts(path) == [16, 17, 18, 19]
    assert recorded(path) == "".join(lines(15, 5))


def test_files_with_other_names_are_left_alone(path: Path) -> None:
    others = [path.with_name(name) for name in ("trace.jsonl.gz", "trace.jsonl.01", "trace.jsonl.-1", "trace.json")]
    for each in others:
        each.write_text("x" * MAX_BYTES)
    file = TraceFile(path, MAX_BYTES)
    file.append(lines(0, 200))
    assert all(each.stat().st_size == MAX_BYTES for each in others)
    assert path.with_name("trace.jsonl.1").exists() is False  # removed as the oldest
    assert path.with_name("trace.jsonl.19").exists()


def test_two_processes_can_not_share_a_file(path: Path) -> None:
    file = TraceFile(path, MAX_BYTES)
    file.append(lines(0, 1))
    with pytest.raises(CannotRecord, match=r"trace\.jsonl: another process records into it"):
        TraceFile(path, MAX_BYTES)
    file.append(lines(1, 1))
    assert path.read_text() == "".join(lines(0, 2))
    file.close()
    TraceFile(path, MAX_BYTES)


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("folder", "Is a directory"),
        ("fifo", "is not a file"),
        ("link", "is a symbolic link"),
        ("missing folder", "No such file"),
    ],
)
def test_what_is_no_file_is_refused(kind: str, complaint: str, path: Path) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(path.with_name("target"))
    else:
        path = path.parent / "missing" / "trace.jsonl"
    with pytest.raises(CannotRecord, match=complaint) as raised:
        TraceFile(path, MAX_BYTES)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_file_that_was_moved_away_stays_as_it_is_and_a_new_one_begins(path: Path) -> None:
    file = TraceFile(path, MAX_BYTES)
    file.append(lines(0, 2))
    mine = path.rename(path.with_name("mine.jsonl"))
    file.append(lines(2, 2))
    assert mine.read_text() == "".join(lines(0, 2))
    assert path.read_text() == "".join(lines(2, 2))


def test_a_folder_that_vanishes_and_a_file_of_others_end_it(path: Path, tmp_path: Path) -> None:
    inside = tmp_path / "folder" / "trace.jsonl"
    inside.parent.mkdir()
    file = TraceFile(inside, MAX_BYTES)
    inside.unlink()
    inside.parent.rmdir()
    with pytest.raises(CannotRecord, match="No such file"):
        file.append(lines(0, 1))
    file = TraceFile(path, MAX_BYTES)
    path.unlink()
    path.write_text("another's")
    with pytest.raises(CannotRecord, match="File exists"):
        file.append(lines(0, 1))
    assert path.read_text() == "another's"


def test_a_full_disk_leaves_whole_lines(path: Path) -> None:
    free_bytes = 25

    def write(fd: int, data: bytes) -> int:
        nonlocal free_bytes
        if free_bytes == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        num_bytes = os.write(fd, data[:free_bytes])
        free_bytes -= num_bytes
        return num_bytes

    file = TraceFile(path, MAX_BYTES, write)
    with pytest.raises(CannotRecord, match=r"trace\.jsonl: No space left on device"):
        file.append(lines(0, 4))
    assert path.read_text() == "".join(lines(0, 2))
    assert file.num_lines == 2
