"""The levels of the process's loggers, which an operator changes while it runs, for a while or for good."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from difflib import get_close_matches

from telemetry.events import LogLevelChanged, Publisher

LEVELS = ("debug", "info", "warning", "error")
MAX_CHANGED = 64  # loggers with a level of their own
WHOLE_LOG = ""


class UnknownLogger(Exception):
    """The process has no logger of this name, or too many have a level of their own."""


@dataclass(frozen=True, slots=True)
class LoggerLevel:
    """The level of a logger, one of `LEVELS`, and when it runs out, in seconds since the epoch. None: it does not."""

    logger: str
    level: str
    expire_time: float | None = None


@dataclass(slots=True)
class _Change:
    level: str
    before: int
    expire_time: float | None
    timer: asyncio.TimerHandle | None


class LogLevels:
    """The changed levels. Each change is an event. For the event loop."""

    def __init__(self, bus: Publisher | None) -> None:
        self._bus = bus
        self._changes: dict[str, _Change] = {}

    def __repr__(self) -> str:
        return f"<LogLevels {len(self._changes)}/{MAX_CHANGED} changed>"

    def set(self, logger: str, level: str, seconds: float | None) -> None:
        """Give a logger a level, for `seconds` or until the process ends. The whole log has the name "".

        Raises: UnknownLogger.
        """
        _check_exists(logger)
        earlier = self._changes.get(logger)
        if earlier is None and len(self._changes) >= MAX_CHANGED:
            raise UnknownLogger(f"{MAX_CHANGED} loggers have a level of their own already")
        if earlier is not None and earlier.timer is not None:
            earlier.timer.cancel()
        expire_time = timer = None
        if seconds is not None:
            expire_time = time.time() + seconds
            timer = asyncio.get_running_loop().call_later(seconds, self._restore, logger, "expired")
        before = earlier.before if earlier is not None else logging.getLogger(logger).level
        self._changes[logger] = _Change(level, before, expire_time, timer)
        self._apply(logger, level.upper(), "requested")

    def restore(self, logger: str) -> None:
        """Give a logger the level again that it had first. Nothing happens if it was not changed.

        Raises: UnknownLogger.
        """
        _check_exists(logger)
        if logger in self._changes:
            self._restore(logger, "requested")

    def levels(self) -> list[LoggerLevel]:
        """Return the level of the whole log, and then the changed ones of single loggers."""
        whole = self._changes.get(WHOLE_LOG)
        return [
            LoggerLevel(WHOLE_LOG, level_of(WHOLE_LOG), whole.expire_time if whole is not None else None),
            *(LoggerLevel(name, each.level, each.expire_time) for name, each in sorted(self._changes.items()) if name),
        ]

    def close(self) -> None:
        """Restore all levels: other programs of the process may log, too."""
        for logger, change in self._changes.items():
            if change.timer is not None:
                change.timer.cancel()
            logging.getLogger(logger).setLevel(change.before)
        self._changes.clear()

    def _restore(self, logger: str, why: str) -> None:
        change = self._changes.pop(logger)
        if change.timer is not None:
            change.timer.cancel()
        self._apply(logger, change.before, why)

    def _apply(self, logger: str, level: int | str, why: str) -> None:
        change = self._changes.get(logger)
        expire_time = change.expire_time if change is not None else None
        logging.getLogger(logger).setLevel(level)
        if self._bus is not None:
            self._bus.publish(
                LogLevelChanged(logger=logger, level=level_of(logger), expire_time=expire_time, reason=why)
            )


def level_of(logger: str) -> str:
    """Return the level at which a logger logs, as one of `LEVELS`: the next one above, where it has another."""
    effective = logging.getLogger(logger).getEffectiveLevel()
    return next((level for level in LEVELS if getattr(logging, level.upper()) >= effective), LEVELS[-1])


def _check_exists(logger: str) -> None:
    if logger == WHOLE_LOG or logger in logging.root.manager.loggerDict:
        return
    near = get_close_matches(logger, list(logging.root.manager.loggerDict), n=1)
    hint = f"; is {near[0]!r} meant?" if near else ""
    raise UnknownLogger(f"the depot has no logger {logger!r}{hint}")
