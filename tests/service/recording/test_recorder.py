"""The recorder never holds up the event loop: it drops and counts, and ends with one event when it can't write."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.depot.recording import LookedUp, RequestEnded
from service.l1.keys import Namespace, Prefix
from service.recording import recorder as module
from service.recording.recorder import Recorder
from telemetry.events import Event, RecordingEnded
from tests.fakes.waiting import wait_until

BLOCK_TOKENS = 4
MIB = 1 << 20


class Bus:
    """A publisher that keeps events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def publish(self, event: Event) -> None:
        self.events.append(event)

    def only(self) -> RecordingEnded:
        [event] = self.events
        assert isinstance(event, RecordingEnded)
        return event


class Disk:
    """A disk whose writes wait for `free`, and fail if it is `full`. `writes` counts those that have begun."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.full = False
        self.num_writes = 0

    def write(self, fd: int, data: bytes) -> int:
        self.num_writes += 1
        assert self.free.wait(30)
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def looked_up(request: int, num_tokens: int = 8) -> LookedUp:
    return LookedUp(
        request=request,
        request_before=0,
        monotonic=0.0,
        prefix=Prefix(token_ids=np.arange(num_tokens, dtype=np.uint32)),
        namespace=Namespace(b"n" * 32),
        chunk_size=BLOCK_TOKENS,
        tenant="",
        model_name="model",
    )


def started(path: Path, bus: Bus | None = None, **options: Any) -> Recorder:
    recorder = Recorder(path, MIB, bus=bus, **options)
    recorder.start()
    return recorder


def lengths(path: Path) -> list[int]:
    return [json.loads(line)["input_length"] for line in path.read_text().splitlines()]


async def test_a_request_is_in_the_file_soon_after_its_end(path: Path) -> None:
    recorder = started(path)
    for number in (1, 2):
        recorder.note(looked_up(number, num_tokens=number))
        recorder.note(RequestEnded(request=number))
        wait_until(lambda number=number: recorder.num_recorded == number)  # type: ignore[misc]
    assert lengths(path) == [1, 2]
    assert recorder.is_recording
    await recorder.close()


async def test_the_end_writes_the_requests_that_are_open(path: Path) -> None:
    bus = Bus()
    recorder = started(path, bus)
    for number in range(1, 101):
        recorder.note(looked_up(number, num_tokens=number))
    await recorder.close()
    assert lengths(path) == list(range(1, 101))
    assert not recorder.is_recording
    ended = bus.only()
    assert (ended.file, ended.reason, ended.num_requests, ended.num_dropped) == (str(path), "", 100, 0)


async def test_a_slow_disk_costs_requests_that_are_counted_and_never_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 4 * 100)
    disk, bus = Disk(), Bus()
    recorder = started(path, bus, write=disk.write)
    recorder.note(looked_up(1))
    recorder.note(RequestEnded(request=1))
    wait_until(lambda: disk.num_writes == 1)
    for number in range(2, 52):
        recorder.note(looked_up(number, num_tokens=10))
        recorder.note(RequestEnded(request=number))
    assert recorder.num_dropped == 40
    disk.free.set()
    wait_until(lambda: recorder.num_recorded == 11)
    recorder.note(looked_up(60, num_tokens=60))
    await recorder.close()
    assert lengths(path) == [8, *[10] * 10, 60]
    assert bus.only().num_dropped == 40


async def test_a_full_disk_ends_the_recording_once_and_what_comes_then_is_counted(path: Path) -> None:
    disk, bus = Disk(), Bus()
    recorder = started(path, bus, write=disk.write)
    disk.full = True
    disk.free.set()
    recorder.note(looked_up(1))
    recorder.note(RequestEnded(request=1))
    recorder.note(looked_up(2))
    wait_until(lambda: bool(bus.events))
    assert not recorder.is_recording
    ended = bus.only()
    assert ended.reason == f"{path}: No space left on device"
    assert (ended.num_requests, ended.num_dropped, recorder.num_dropped) == (0, 2, 2)
    recorder.note(looked_up(3))
    assert recorder.num_dropped == 3
    await recorder.close()
    assert len(bus.events) == 1
    assert lengths(path) == []


async def test_a_full_disk_is_logged_where_no_events_are(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    disk.full = True
    disk.free.set()
    recorder = started(path, write=disk.write)
    recorder.note(looked_up(1))
    await recorder.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text


async def test_a_disk_that_hangs_does_not_hold_up_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.01)
    disk = Disk()
    recorder = started(path, write=disk.write)
    recorder.note(looked_up(1))
    await recorder.close()
    assert "RecordingAbandoned" in caplog.text
    disk.free.set()
    wait_until(lambda: not recorder.is_recording)


async def test_a_recorder_that_never_started_lets_go_of_its_file(path: Path) -> None:
    recorder = Recorder(path, MIB, bus=None)
    await recorder.close()
    await started(path).close()
