"""Output that is written in a thread: whole lines in order, and a count of those that could not be written."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from telemetry.logs.detached_stream import DetachedStream
from tests.fakes.waiting import wait_until

SECONDS = 10.0


class Pipe:
    """A pipe of a page."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)

    def read_until(self, end: str) -> str:
        """Return all that is written up to an end that comes."""
        text = b""
        while not text.endswith(end.encode()):
            text += os.read(self.reader, 1 << 16)
        return text.decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for fd in (pipe.reader, pipe.writer):  # each test has finished its stream: no thread may write to a reused number
        os.close(fd)


def finish(stream: DetachedStream) -> bool:
    return stream.finish(monotonic() + SECONDS)


def test_what_is_printed_comes_out_in_whole_lines_and_in_order(pipe: Pipe) -> None:
    stream = DetachedStream(pipe.writer, "stdout")
    for number in range(3):
        print("line", number, file=stream, flush=True)
    stream.write("é\ud800, and no end")
    assert finish(stream)
    assert pipe.read_until("end\n") == "line 0\nline 1\nline 2\né\\ud800, and no end\n"
    assert stream.num_dropped_lines == 0


def test_a_full_pipe_drops_lines_and_a_line_there_says_how_many(pipe: Pipe) -> None:
    stream = DetachedStream(pipe.writer, "stderr", capacity_bytes=20_000)
    stream.report = lambda num_lines: f"missing {num_lines}"
    start = monotonic()
    for number in range(10_000):
        stream.write(f"{number}\n")
    assert monotonic() - start < SECONDS
    assert stream.num_dropped_lines > 1_000
    lines = pipe.read_until(f"missing {stream.num_dropped_lines}\n").splitlines()
    assert lines[:-1] == [str(number) for number in range(10_000 - stream.num_dropped_lines)]
    stream.write("after\n")
    assert pipe.read_until("after\n") == "after\n"
    assert finish(stream)


def test_a_full_disk_is_tried_again_and_a_line_says_how_many_are_missing(pipe: Pipe, monkeypatch: Any) -> None:
    monkeypatch.setattr("telemetry.logs.detached_stream.RETRY_SECONDS", 0.01)
    fd = os.open("/dev/full", os.O_WRONLY)
    stream = DetachedStream(fd, "stderr")
    stream.report = lambda num_lines: f"missing {num_lines}"
    stream.write("1\n2\n")
    wait_until(lambda: stream.num_dropped_lines == 2)
    stream.write("3\n")
    os.dup2(pipe.writer, fd)  # there is space again
    assert pipe.read_until("\n") == "missing 3\n"
    assert finish(stream)
    os.close(fd)


def test_a_line_that_was_torn_is_counted_and_ended_before_the_next(tmp_path: Any, monkeypatch: Any) -> None:
    """As on a disk that becomes full within a line."""
    monkeypatch.setattr("telemetry.logs.detached_stream.RETRY_SECONDS", 0.01)
    path = tmp_path / "log"
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    stream = DetachedStream(fd, "stderr")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        stream.write("whole\ntorn apart\nlost\n")
        wait_until(lambda: stream.num_dropped_lines == 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    wait_until(lambda: path.read_text().count("\n") == 3)
    stream.write("next\n")
    assert finish(stream)
    os.close(fd)
    whole, torn, report, next_line = path.read_text().splitlines()
    assert (whole, torn, next_line) == ("whole", "torn", "next")
    assert " 2 lines are missing" in report


def test_a_descriptor_that_does_not_block_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    stream = DetachedStream(pipe.writer, "stdout")
    text = "".join(f"{number}\n" for number in range(5_000))
    stream.write(text)
    assert pipe.read_until("4999\n") == text
    assert finish(stream)
    assert stream.num_dropped_lines == 0


def test_the_end_does_not_wait_for_a_reader(pipe: Pipe) -> None:
    stream = DetachedStream(pipe.writer, "stdout")
    stream.write("x" * 10_000 + "\n")
    start = monotonic()
    assert not stream.finish(start + 0.1)
    assert monotonic() - start < SECONDS
    pipe.read_until("x\n")
    assert finish(stream)


def test_a_finalizer_may_print_while_its_thread_prints(pipe: Pipe) -> None:
    stream = DetachedStream(pipe.writer, "stderr")

    class Encoded(str):
        def rpartition(self, separator: str) -> Any:  # in the middle of a write
            stream.write("from a finalizer\n")
            return str.rpartition(self, separator)

        def __radd__(self, other: str) -> str:
            return Encoded(other + str(self))

    stream.write(Encoded("line\n"))
    assert "from a finalizer\n" in pipe.read_until("\n")
    assert finish(stream)
