"""Files that others may replace at any time, read safely, and read again when they change."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from telemetry.events import FileRefused, FileReloaded, Publisher
from telemetry.thread import in_daemon_thread

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 << 20
LOOK_EVERY_SECONDS = 0.5
HANG_SECONDS = 5.0  # until a read that has not returned counts as broken

Value = TypeVar("Value")
Result = TypeVar("Result")


def read_file(path: Path) -> bytes:
    """Return the content of an ordinary file of at most `MAX_FILE_BYTES`.

    A FIFO or a device is refused, because to read it may block. The read blocks while the file system does not answer.
    The error has the fault in `strerror`.

    Raises: OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is not an ordinary file")
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"is larger than {MAX_FILE_BYTES} bytes")
    return content


class ReloadedFiles(Generic[Value]):
    """The value of one or more files, made by `read`. A broken change is refused, and the last good value stays.

    The contents are compared, and not the times: a Secret of Kubernetes changes behind symbolic links. A change counts
    when two looks in a row see the same contents, because a certificate and its key may be written one after the other.
    A broken file is tried again when it changes. A file system that does not answer blocks one thread until it answers.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        read: Callable[[], Value],
        refusal: type[Exception],
        bus: Publisher | None,
    ) -> None:
        """Read the first value. An error of `read` is raised."""
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
        """Whether the files can't be used as they are."""
        return self._is_refused or self._hangs

    async def watch(self, changed: Callable[[Value], None]) -> None:
        """Look for changes, and pass each new value to `changed`. Never return."""
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
                # A bug of ours or of a parser must not end the server.
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
        """Read the files in a daemon thread, so that a read that hangs does not delay the exit."""
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
        self._report("the file can't be read", f"its file system has not answered for {HANG_SECONDS:g} s")

    def _refused(self, why: str) -> None:
        self._is_refused = True
        self._report("the new content of the file is refused", why)

    def _report(self, fault: str, why: str) -> None:
        logger.error("%s: %s, the previous content stays in use: %s", self.name, fault, why)
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
