"""A level is changed for a while, for one logger or all, and is then what it was."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

import pytest

from service.process import log_levels
from service.process.log_levels import LoggerLevel, LogLevels, UnknownLogger, level_of
from telemetry.events import Event, LogLevelChanged
from tests.fakes.waiting import eventually

NAME = "tests.log_levels"


class Kept:
    """Keeps the changes of levels."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str, bool, str]] = []

    def publish(self, event: Event) -> None:
        assert isinstance(event, LogLevelChanged)
        self.changes.append((event.logger, event.level, event.expire_time is not None, event.reason))


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def levels(kept: Kept) -> Iterator[LogLevels]:
    root, own = logging.getLogger(), logging.getLogger(NAME)
    before = root.level, own.level
    root.setLevel(logging.WARNING)
    own.setLevel(logging.NOTSET)
    levels = LogLevels(kept)
    yield levels
    levels.close()
    assert (root.level, own.level) == (logging.WARNING, logging.NOTSET), "a level is left behind"
    root.setLevel(before[0])
    own.setLevel(before[1])


async def test_a_level_holds_for_the_whole_log_until_it_is_restored(levels: LogLevels, kept: Kept) -> None:
    levels.set("", "debug", None)
    assert logging.getLogger(f"{NAME}.below").isEnabledFor(logging.DEBUG)
    assert levels.levels() == [LoggerLevel("", "debug")]
    levels.restore("")
    assert not logging.getLogger(NAME).isEnabledFor(logging.INFO)
    assert levels.levels() == [LoggerLevel("", "warning")]
    assert kept.changes == [("", "debug", False, "requested"), ("", "warning", False, "requested")]


async def test_a_level_of_one_logger_leaves_the_others_alone(levels: LogLevels) -> None:
    levels.set(NAME, "error", None)
    assert not logging.getLogger(f"{NAME}.below").isEnabledFor(logging.WARNING)
    assert logging.getLogger("tests").isEnabledFor(logging.WARNING)
    assert levels.levels() == [LoggerLevel("", "warning"), LoggerLevel(NAME, "error")]


async def test_a_level_runs_out_by_itself_and_says_when(levels: LogLevels, kept: Kept) -> None:
    levels.set(NAME, "debug", 0.05)
    [_, changed] = levels.levels()
    assert changed.expire_time is not None
    assert changed.expire_time - time.time() <= 0.05
    await eventually(lambda: len(levels.levels()) == 1)
    assert level_of(NAME) == "warning"
    assert kept.changes == [(NAME, "debug", True, "requested"), (NAME, "warning", False, "expired")]


async def test_a_later_level_ends_the_time_of_an_earlier_one(levels: LogLevels) -> None:
    levels.set(NAME, "debug", 0.02)
    levels.set(NAME, "info", None)
    await asyncio.sleep(0.05)
    assert levels.levels()[1:] == [LoggerLevel(NAME, "info")]
    levels.restore(NAME)
    assert level_of(NAME) == "warning", "the level that it had first"


async def test_a_name_that_no_logger_has_is_refused_with_the_nearest(levels: LogLevels, kept: Kept) -> None:
    for change in (lambda: levels.set("tests.log_level", "debug", None), lambda: levels.restore("tests.log_level")):
        with pytest.raises(UnknownLogger, match=r"no logger 'tests\.log_level'; is 'tests\.log_levels' meant\?"):
            change()
    assert "tests.log_level" not in logging.root.manager.loggerDict
    assert kept.changes == []


async def test_no_more_loggers_than_the_limit_have_a_level(levels: LogLevels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_levels, "MAX_CHANGED", 1)
    levels.set("", "info", None)
    levels.set("", "debug", None)
    with pytest.raises(UnknownLogger, match="1 loggers have a level of their own already"):
        levels.set(NAME, "debug", None)


@pytest.mark.parametrize(("number", "name"), [(5, "debug"), (15, "info"), (25, "warning"), (50, "error")])
async def test_other_levels_are_shown_as_the_next_one_above(levels: LogLevels, number: int, name: str) -> None:
    logging.getLogger(NAME).setLevel(number)
    assert level_of(NAME) == name
    logging.getLogger(NAME).setLevel(logging.NOTSET)
