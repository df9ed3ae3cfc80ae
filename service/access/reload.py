"""A file that is read again when it changes; one that is broken changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from service.access.files import read_file
from telemetry.events import FileRefused, FileReloaded, Publisher
from telemetry.thread import in_daemon_thread

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.5
HANG_SECONDS = 5.0  # of a read, until it is said that the file can't be read

Value = TypeVar("Value")
Result = TypeVar("Result")


class ReloadedFiles(Generic[Value]):
    """What some files say together, as they were when they last were right.

    Their contents are compared, and not their times: a Secret of Kubernetes changes behind symbolic links. They are
    read when two looks in a row have seen the same: a certificate and its key may be written one after the other. What
    is broken is tried again whenever it changes. A file system that does not answer costs one thread, until it does.
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
        self._is_refused = False
        self._hangs = False
        self._paths = paths
        self._read = read
        self._refusal = refusal
        self._bus = bus
        self._contents = self._look()
        self.value = read()

    def __repr__(self) -> str:
        return f"<ReloadedFiles {self.name}, {'broken' if self.is_broken else 'in use'}>"

    @property
    def is_broken(self) -> bool:
        """Whether what is in the files now can't be used."""
        return self._is_refused or self._hangs

    async def watch(self, changed: Callable[[Value], None]) -> None:
        """Look for ever, and tell of each value that is new."""
        seen = self._contents
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            before, seen = seen, await self._outside(self._look)
            if seen != before or seen == self._contents:
                continue
            self._contents = seen
            try:
                value = await self._outside(self._read)
            except self._refusal as error:
                self._refused(str(error))
                continue
            except Exception as error:
                # A bug of ours, or of a parser: the server has to outlive it.
                logger.exception("unexpected error while %s were read", self.name)
                self._refused(f"{type(error).__name__}, see above")
                continue
            self.value = value
            self._is_refused = False
            self.num_reloads += 1
            logger.info("%s: read again: %r", self.name, value)
            if self._bus is not None:
                self._bus.publish(FileReloaded(file=self.name))
            changed(value)

    async def _outside(self, work: Callable[[], Result]) -> Result:
        """Do what reads the files in a thread, which nobody waits for at exit."""
        hang = asyncio.get_running_loop().call_later(HANG_SECONDS, self._hang)
        try:
            return await in_daemon_thread(work, f"read {self.name}")
        finally:
            hang.cancel()
            if self._hangs:
                self._hangs = False
                logger.warning("%s: the file can be read again", self.name)

    def _hang(self) -> None:
        self._hangs = True
        why = f"its file system has not answered for {HANG_SECONDS:g} s"
        logger.error("%s: the file can't be read, what was read before goes on: %s", self.name, why)
        self._count_refusal(why)

    def _refused(self, why: str) -> None:
        self._is_refused = True
        logger.error("%s: what is in the file now is refused, what was read before goes on: %s", self.name, why)
        self._count_refusal(why)

    def _count_refusal(self, why: str) -> None:
        self.num_refusals += 1
        if self._bus is not None:
            self._bus.publish(FileRefused(file=self.name, reason=why))

    def _look(self) -> tuple[bytes | None, ...]:
        return tuple(map(_content, self._paths))


def _content(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except OSError:
        return None
