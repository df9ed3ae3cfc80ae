"""A file that is read again when it changes; one that is broken changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from telemetry.events import Event, FileRefused, FileReloaded

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.5

Value = TypeVar("Value")


class Publisher(Protocol):
    """Takes events."""

    def publish(self, event: Event) -> None:
        """Never blocks, never raises."""


class ReloadedFiles(Generic[Value]):
    """What some files say together, as they were when they last were right.

    Their contents are compared, and not their times: a Secret of Kubernetes changes behind symbolic links. They are
    read when two looks in a row have seen the same: a certificate and its key may be written one after the other. What
    is broken is tried again whenever it changes.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        read: Callable[[], Value],
        refusal: type[Exception],
        bus: Publisher | None,
    ) -> None:
        """Read for the first time. Raises: what `read` raises."""
        self.name = name
        self.num_reloads = 0
        self.num_refusals = 0
        self.is_broken = False
        self._paths = paths
        self._read = read
        self._refusal = refusal
        self._bus = bus
        self._contents = self._look()
        self.value = read()

    def __repr__(self) -> str:
        return f"<ReloadedFiles {self.name}, {'broken' if self.is_broken else 'in use'}>"

    async def watch(self, changed: Callable[[Value], None]) -> None:
        """Look for ever, and tell of each value that is new."""
        seen = self._contents
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            before, seen = seen, await asyncio.to_thread(self._look)
            if seen != before or seen == self._contents:
                continue
            self._contents = seen
            try:
                value = await asyncio.to_thread(self._read)
            except self._refusal as error:
                self._refused(str(error))
                continue
            except Exception as error:
                # A bug of ours, or of a parser: the server has to outlive it.
                logger.exception("unexpected error while %s were read", self.name)
                self._refused(f"{type(error).__name__}, see above")
                continue
            self.value = value
            self.is_broken = False
            self.num_reloads += 1
            logger.info("%s: read again: %r", self.name, value)
            if self._bus is not None:
                self._bus.publish(FileReloaded(file=self.name))
            changed(value)

    def _refused(self, why: str) -> None:
        self.is_broken = True
        self.num_refusals += 1
        logger.error("%s: what is in the file now is refused, what was read before goes on: %s", self.name, why)
        if self._bus is not None:
            self._bus.publish(FileRefused(file=self.name, reason=why))

    def _look(self) -> tuple[bytes | None, ...]:
        return tuple(map(_content, self._paths))


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
