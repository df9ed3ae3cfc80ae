"""`events` prints what happens as it happens, line by line, and ends without noise."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvdepot.cli.events import _lines
from kvdepot.v1 import observability_pb2
from tests.e2e.cli.attached import BUFFERED, Attached, attached


@pytest.fixture(scope="module")
def depot() -> Iterator[Attached]:
    with attached() as found:
        yield found


@contextmanager
def stores(depot: Attached) -> Iterator[list[int]]:
    """Store again and again during the block: a feed begins when its watcher has connected.

    Yield the numbers of the stores so far. Each is in the name of the store's session.
    """
    is_over = threading.Event()
    numbers: list[int] = []

    def store() -> None:
        while not is_over.wait(0.05):
            numbers.append(len(numbers))
            depot.store(1, f"request [{numbers[-1]}]")

    thread = threading.Thread(target=store, daemon=True)
    thread.start()
    try:
        yield numbers
    finally:
        is_over.set()
        thread.join()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Interrupt a command as Ctrl-C does; return its exit code and its standard error."""
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors


def test_events_come_line_by_line_through_a_pipe_and_ctrl_c_ends_them_cleanly(depot: Attached) -> None:
    with stores(depot) as numbers:
        process = depot.start("events", "--follow", "--type", "StoreFinished", "--instance", "pod-1")
        time, type_, *fields = first_line(process).split(" ")
        num_stores = len(numbers)
    assert time.endswith("Z")
    assert type_ == "StoreFinished"
    shown = re.match(r'instance=pod-1 session="request \[(\d+)\]" operation=', " ".join(fields))
    assert shown is not None
    assert num_stores - int(shown[1]) < 20, "the line waited in a buffer, which holds more lines than this"
    assert "resident_tokens=16" in fields
    assert end(process) == (130, "")


def test_json_is_an_object_a_line(depot: Attached) -> None:
    with stores(depot):
        process = depot.start("events", "--follow", "--json", "--type", "StoreFinished")
        event = json.loads(first_line(process))
    assert event["session_id"].startswith("request [")
    assert event["attributes"]
    assert end(process) == (130, "")


def test_a_reader_that_leaves_ends_the_command_without_a_word_even_if_nothing_happens(depot: Attached) -> None:
    with stores(depot):
        process = depot.start("events", "--follow", "--type", "StoreFinished", pipe_into="head -n 1")
        assert process.stderr is not None
        assert "StoreFinished" in process.stderr.readline()
    output, errors = process.communicate(timeout=20)
    assert (output, errors) == ("0\n", "")


def test_a_reader_that_leaves_while_events_come_ends_it_without_a_word(depot: Attached) -> None:
    with stores(depot):
        process = depot.start("events", "--follow", pipe_into="true")
        output, errors = process.communicate(timeout=20)
    assert (output, errors) == ("0\n", "")


def test_a_line_that_has_no_reader_ends_it_without_a_word() -> None:
    """As when the line is written before the command has noticed that its reader left."""
    code = """
from kvdepot.cli import events
events._is_pipe = lambda: False
input()
with events._quiet_end():
    print("a line", flush=True)
"""
    words = [sys.executable, "-c", code]
    with subprocess.Popen(
        words, env=BUFFERED, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate("\n", timeout=20)
    assert (process.returncode, errors) == (0, "")


def test_without_follow_it_says_what_to_do(depot: Attached) -> None:
    result = depot.run("events")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: a depot keeps no events to list\nhint: --follow prints them as they happen, until Ctrl-C\n"
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("StoreFinishd", "StoreFinished"),
        ("lookup", "LookupStarted or LookupFinished"),
        ("chunksstored", "ChunksStored"),
    ],
)
def test_a_type_that_does_not_exist_gets_the_one_that_is_meant(depot: Attached, name: str, meant: str) -> None:
    result = depot.run("events", "--follow", "--type", name)
    assert result.exit_code == 1
    assert f"['{name}'] do not exist; did you mean {meant}? there are [" in result.stderr


def test_a_depot_that_is_away_is_explained_at_once() -> None:
    with attached() as gone:
        pass
    result = gone.run("events", "--follow")
    assert result.exit_code == 1
    assert "hint: start a depot" in result.stderr


def test_a_depot_that_shuts_down_ends_the_feed_and_that_is_said() -> None:
    with attached() as depot, stores(depot):
        process = depot.start("events", "--follow")
        assert first_line(process)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "ServerDraining" in output
    assert "Traceback" not in errors
    assert errors.startswith(f"error: {depot.address}: ")


def test_lost_events_are_said_and_names_do_not_reach_the_terminal() -> None:
    event = observability_pb2.Event(type="StoreFinished", instance_id="\x1b[31mpod")
    message = observability_pb2.WatchEventsResponse(event=event, num_lost_events=1_234)
    lost, shown = _lines(message, json_output=False)
    assert lost == "1,234 events are lost here: they came faster than this command reads them"
    assert r"instance=\x1b[31mpod" in shown
    assert json.loads(next(_lines(message, json_output=True))) == {"num_lost_events": 1_234}
