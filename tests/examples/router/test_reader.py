"""A reader has the picture of each depot, also after lost batches, a restart, a hang, and an end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from examples.router.connection import Endpoints, Patience
from examples.router.index import Match, Prompt
from examples.router.policies import RoundRobin
from examples.router.reader import Change, Condition, Reader
from examples.router.router import Router
from tests.fakes.kv_publisher import KvPublisher
from tests.fakes.waiting import wait_until

QUICK = Patience(probe_seconds=0.1, gone_seconds=1.0)
PATIENT = Patience(probe_seconds=0.1, gone_seconds=3600.0)
NEVER = Patience(probe_seconds=3600.0, gone_seconds=3600.0)


def stored(*first_tokens: int, medium: str = "CPU_PINNED") -> dict[str, object]:
    """Return the event for a block of two tokens at the start of a prompt, for each first token."""
    return {
        "type": "BlockStored",
        "block_hashes": list(first_tokens),
        "parent_block_hash": None,
        "token_ids": [token for first in first_tokens for token in (first, 0)],
        "block_size": 2,
        "medium": medium,
    }


def removed(first_token: int) -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": [first_token], "medium": "CPU_PINNED"}


class Readout:
    """A router that takes in what a reader of some depots reads, for at most ten seconds."""

    def __init__(self, *depots: Endpoints, patience: Patience = QUICK) -> None:
        self.reader = Reader(depots, patience)
        self.router = Router(len(depots), RoundRobin(), "model")
        self.conditions: list[Condition] = []

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10.0
        while not is_so():
            self.take(self.reader.changes.get(timeout=max(0.0, deadline - time.monotonic())))

    def take(self, change: Change) -> None:
        if change.condition is not Condition.GOES_ON:
            self.conditions.append(change.condition)
        self.router.apply(change)

    def known(self, depot: int = 0) -> tuple[int, ...]:
        """Return the first tokens, up to 9, of the blocks that it knows."""
        return tuple(token for token in range(10) if self.router.matches(Prompt([token, 0]))[depot] == Match(2, 2.0))

    def has(self, *first_tokens: int, depot: int = 0) -> bool:
        """Return whether it knows blocks with these first tokens, and no others."""
        return first_tokens == self.known(depot)


@contextmanager
def reading(*publishers: KvPublisher, patience: Patience = QUICK) -> Iterator[Readout]:
    readout = Readout(*(publisher.endpoints for publisher in publishers), patience=patience)
    with readout.reader:
        yield readout


@pytest.fixture
def endpoints(tmp_path: Path) -> Endpoints:
    return Endpoints(events=f"ipc://{tmp_path}/events", replay=f"ipc://{tmp_path}/replay")


@pytest.fixture
def publisher(endpoints: Endpoints) -> Iterator[KvPublisher]:
    with KvPublisher(endpoints) as publisher:
        yield publisher


def test_a_reader_that_starts_late_gets_all_of_it_and_goes_on(publisher: KvPublisher) -> None:
    publisher.publish(stored(1), stored(2))
    publisher.publish(removed(1))
    with reading(publisher) as readout:
        readout.until(lambda: readout.has(2))
        publisher.publish(stored(3))
        readout.until(lambda: readout.has(2, 3))
        readout.until(lambda: readout.conditions == [Condition.ANSWERS])


def test_a_gap_is_closed_by_a_replay(publisher: KvPublisher) -> None:
    publisher.publish(stored(1))
    with reading(publisher, patience=NEVER) as readout:
        readout.until(lambda: readout.has(1) and readout.router.num_answering == 1)
        publisher.wait_for_reader()
        publisher.publish(stored(2), is_lost=True)
        publisher.publish(stored(3))
        readout.until(lambda: readout.has(1, 2, 3))
        readout.until(lambda: readout.conditions == [Condition.ANSWERS])


def test_a_lost_last_batch_is_noticed_without_another_one(publisher: KvPublisher) -> None:
    with reading(publisher) as readout:
        publisher.publish(stored(1))
        readout.until(lambda: readout.has(1))
        publisher.publish(stored(2), is_lost=True)
        readout.until(lambda: readout.has(1, 2))


def test_batches_that_nobody_has_any_more_begin_anew(endpoints: Endpoints) -> None:
    with KvPublisher(endpoints, kept_batches=2) as publisher, reading(publisher) as readout:
        publisher.publish(stored(1))
        readout.until(lambda: readout.has(1))
        for token in (2, 3, 4):
            publisher.publish(stored(token), is_lost=True)
        readout.until(lambda: readout.has(3, 4))
        readout.until(lambda: readout.conditions == [Condition.ANSWERS, Condition.BEGINS_ANEW])


def test_a_depot_that_starts_again_is_believed_anew(endpoints: Endpoints) -> None:
    with KvPublisher(endpoints) as publisher:
        publisher.publish(stored(1))
        publisher.publish(stored(2))
        with reading(publisher) as readout:
            readout.until(lambda: readout.has(1, 2))
            publisher.__exit__()
            with KvPublisher(endpoints) as again:
                again.publish(stored(3))
                readout.until(lambda: readout.has(3))


@pytest.mark.parametrize("how", ["hangs", "ends"])
def test_a_depot_that_is_gone_loses_all_and_comes_back(endpoints: Endpoints, how: str) -> None:
    publisher = KvPublisher(endpoints).__enter__()
    publisher.publish(stored(1))
    with reading(publisher) as readout:
        readout.until(lambda: readout.has(1) and readout.router.num_answering == 1)
        if how == "hangs":
            publisher.is_silent = True
        else:
            publisher.__exit__()
        readout.until(lambda: readout.router.num_answering == 0)
        assert readout.has()
        if how == "hangs":
            publisher.is_silent = False
        else:
            publisher = KvPublisher(endpoints).__enter__()
            publisher.publish(stored(1))
        readout.until(lambda: readout.router.num_answering == 1 and readout.has(1))
    publisher.__exit__()


def test_a_late_answer_is_not_taken_for_the_answer_to_a_later_question(publisher: KvPublisher) -> None:
    publisher.publish(stored(1))
    publisher.publish(stored(2))
    with reading(publisher, patience=PATIENT) as readout:
        readout.until(lambda: readout.has(1, 2) and readout.router.num_answering == 1)
        publisher.is_silent = True
        asked = publisher.num_requests
        wait_until(lambda: publisher.num_requests > asked)
        asked = publisher.num_requests
        publisher.drop_readers()
        wait_until(lambda: publisher.num_requests > asked)
        publisher.is_silent = False
        publisher.publish(stored(3))
        readout.until(lambda: readout.has(1, 2, 3))
        for _ in range(2):  # both answers have come by then
            asked = publisher.num_requests
            wait_until(lambda: publisher.num_requests > asked)  # noqa: B023 - called here
        publisher.publish(stored(4))
        readout.until(lambda: 4 in readout.known())
        assert readout.has(1, 2, 3, 4)


def test_a_picture_that_never_gets_whole_is_forgotten(publisher: KvPublisher) -> None:
    publisher.has_end = False
    publisher.publish(stored(1))
    with reading(publisher) as readout:
        readout.until(lambda: readout.has(1))
        readout.until(lambda: readout.conditions == [Condition.BEGINS_ANEW])
        assert readout.has()


def test_a_pause_of_the_reader_is_no_silence_of_a_depot(
    publisher: KvPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause_seconds = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + pause_seconds)
    monkeypatch.setattr("examples.router.connection.time", clock)
    with reading(publisher) as readout:
        readout.until(lambda: readout.router.num_answering == 1)
        pause_seconds = 100.0
        asked = publisher.num_requests
        wait_until(lambda: publisher.num_requests > asked)
        publisher.publish(stored(1))
        readout.until(lambda: readout.has(1))
        readout.until(lambda: readout.conditions == [Condition.ANSWERS])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_that_fails_leaves_no_old_picture(publisher: KvPublisher, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher.publish(stored(1))
    with reading(publisher) as readout:
        readout.until(lambda: readout.has(1) and readout.router.num_answering == 1)
        monkeypatch.setattr("examples.router.reader.decode_batch", None)
        publisher.publish(stored(2))
        readout.until(lambda: readout.router.num_answering == 0)
        assert readout.has()


def test_one_depot_that_is_not_there_does_not_hold_up_another(publisher: KvPublisher, tmp_path: Path) -> None:
    nowhere = Endpoints(events=f"ipc://{tmp_path}/no-events", replay=f"ipc://{tmp_path}/no-replay")
    readout = Readout(nowhere, publisher.endpoints)
    with readout.reader:
        publisher.publish(stored(1))
        readout.until(lambda: readout.has(1, depot=1) and readout.router.num_answering == 1)
        assert readout.router.route(Prompt([1, 0])).depot == 1


def test_bytes_that_are_no_batch_are_counted_and_left_out(publisher: KvPublisher) -> None:
    publisher.publish({"type": "BlockRemoved"})
    publisher.publish(stored(1))
    with reading(publisher) as readout:
        readout.until(lambda: readout.has(1))
        assert readout.reader.num_bad_batches == 1


def test_a_reader_ends_while_nobody_takes_its_changes(publisher: KvPublisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.router.reader.MAX_CHANGES", 1)
    for _ in range(5):
        publisher.publish(stored(1))
    with reading(publisher) as readout:
        readout.until(lambda: readout.has(1))
        wait_until(readout.reader.changes.full)
