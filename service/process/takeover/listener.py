"""The predecessor's side of a takeover: a unix socket at which a successor asks for the memory.

The successor gets the memory in three steps. The predecessor drains, and sends the descriptor. The successor confirms
that it has it: this is the point of no return. Then the predecessor closes its listeners, and says so. Only after that
does the successor use the memory, and listen itself. So there is no moment in which both use it.

Until the point of no return the predecessor can serve on. It does so whatever goes wrong: the successor vanishes or
says nothing, its time is over, the drain fails. Nothing is lost then. After that point the memory is the successor's,
even if the last line does not reach it. A successor that sees this process end uses the memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.process.takeover.connection import Connection, SuccessorLost
from service.process.takeover.lines import (
    HEARTBEAT_SECONDS,
    PROTOCOL,
    Facts,
    NotUnderstood,
    TakeoverRequest,
    peer_of,
    printable,
    request_of,
)
from service.process.takeover.socket_file import SocketFile

logger = logging.getLogger(__name__)

MAX_SILENT = 4  # connections that have sent no request yet; more must wait
REQUEST_SECONDS = 2.0
RECEIVED_SECONDS = 5.0
LET_GO_SECONDS = 10.0


class TakeoverRefused(Exception):
    """The predecessor does not hand over. The message is the reason, which the successor reports."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What the successor gets: a descriptor, which stays the predecessor's to close, and facts about it.

    Both processes then share one open file description, so that a `flock` on it goes with it.
    """

    fd: int
    facts: Facts


class Predecessor(Protocol):
    """The depot that may hand its memory over."""

    async def drain(self, request: TakeoverRequest, report: Callable[[str], None]) -> Handover:
        """Refuse new work, finish the rest, and return what to hand over. `report` tells the successor how it goes.

        It is cancelled if the successor vanishes or its time is over.

        Raises: TakeoverRefused.
        """
        ...

    async def serve_on(self) -> None:
        """Undo the drain, finished or not: the memory stays here."""
        ...

    async def let_go(self) -> None:
        """Write nothing to the memory from now on, and close the listeners, so that the successor can open its own.

        The process ends afterwards. It may not fail, and takes a few seconds at most.
        """
        ...


class TakeoverListener:
    """The takeover socket, of mode 600, for this process's user and root. For the event loop.

    The socket file of a dead process is replaced. A process that hangs, is silent or sends anything else costs one of
    a few connections for two seconds. One successor is served at a time, and others are refused.

    Raises: CannotOfferTakeover.
    """

    def __init__(self, path: Path, predecessor: Predecessor, *, received_seconds: float = RECEIVED_SECONDS) -> None:
        self._predecessor = predecessor
        self._received_seconds = received_seconds
        self._file = SocketFile(path, backlog=MAX_SILENT)
        self._silent = asyncio.Semaphore(MAX_SILENT)
        self._is_busy = False
        self._handed_over = asyncio.Event()
        self._accepting: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "handed over" if self._handed_over.is_set() else "busy" if self._is_busy else "waiting"
        return f"<TakeoverListener {self._file.path} {state}>"

    async def run(self) -> None:
        """Serve successors, and return when one has the memory. When cancelled, close the socket.

        A takeover that is cancelled with it ends without `serve_on`, because the whole process ends.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._accepting = tasks.create_task(self._accept(tasks))
                await self._handed_over.wait()
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket and remove its file. `run` does it by itself."""
        self._file.close()

    async def _accept(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._silent.acquire()
            try:
                connection, _ = await loop.sock_accept(self._file.socket)
            except OSError as error:  # too many open files
                logger.warning("TakeoverNotAccepted error=%s", error)
                self._silent.release()
                await asyncio.sleep(HEARTBEAT_SECONDS)
                continue
            tasks.create_task(self._serve(Connection(connection)))

    async def _serve(self, connection: Connection) -> None:
        with connection.socket:
            try:
                try:
                    request = await self._request(connection)
                finally:
                    self._silent.release()
                await self._hand_over(connection, request)
            except (TakeoverRefused, NotUnderstood, SuccessorLost) as refusal:
                logger.warning("TakeoverRefused reason=%s", refusal)
                await connection.refuse(str(refusal))
            except Exception:  # a bug in the drain. The depot serves on
                logger.exception("TakeoverFailed")
                await connection.refuse("an internal error of the depot. Its log has the traceback")

    async def _request(self, connection: Connection) -> TakeoverRequest:
        peer = peer_of(connection.socket)
        if not peer.is_trusted:
            raise TakeoverRefused(f"process {peer.pid} of user {peer.uid} is neither this user's nor root's")
        line = await connection.receive(REQUEST_SECONDS)
        if line.get("protocol") != PROTOCOL:
            raise TakeoverRefused(f"this depot speaks protocol {PROTOCOL} of takeovers, and not the successor's")
        request = request_of(line, peer)
        connection.expect_silence()
        if self._is_busy or self._handed_over.is_set():
            raise TakeoverRefused("another successor is taking over")
        self._is_busy = True
        return request

    async def _hand_over(self, connection: Connection, request: TakeoverRequest) -> None:
        logger.info("TakeoverStarted pid=%d software_version=%s", request.pid, request.software_version)
        try:
            try:
                handover = await self._drain(connection, request)
                await connection.send({"handover": dict(handover.facts)}, handover.fd)
                if (await connection.receive(self._received_seconds)).get("received") is not True:
                    raise SuccessorLost("the successor has not confirmed that it has the memory")
            except Exception:
                await self._predecessor.serve_on()
                logger.info("TakeoverUndone pid=%d", request.pid)
                raise
            await self._complete(connection)
            logger.info("HandedOver pid=%d", request.pid)
        finally:
            self._is_busy = False

    async def _complete(self, connection: Connection) -> None:
        """Give the memory up: the point of no return has passed. Even after a failure this process ends."""
        try:
            if self._accepting is not None:
                self._accepting.cancel()
                await asyncio.wait((self._accepting,))
            self.close()
            async with asyncio.timeout(LET_GO_SECONDS):
                await self._predecessor.let_go()
            await connection.send({"released": True})
        except SuccessorLost as error:
            logger.warning("ReleaseNotSent reason=%s", error)
        except Exception:  # the successor waits for the end of this process instead
            logger.exception("ReleaseFailed")
        finally:
            self._handed_over.set()

    async def _drain(self, connection: Connection, request: TakeoverRequest) -> Handover:
        """Drain, and say meanwhile how it goes. Stop when the successor vanishes or its time is over."""
        progress = "draining"

        def report(text: str) -> None:
            nonlocal progress
            progress = printable(text)

        draining = asyncio.ensure_future(self._predecessor.drain(request, report))
        vanishing = asyncio.ensure_future(connection.anything())
        try:
            async with asyncio.timeout(request.timeout_seconds):
                while not draining.done():
                    await connection.send({"progress": progress})
                    await asyncio.wait(
                        (draining, vanishing), timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    if vanishing.done():
                        raise SuccessorLost("the successor vanished, or sent something, while the depot drained")
        except TimeoutError:
            raise TakeoverRefused(f"the drain takes more than {request.timeout_seconds:g} s: {progress}") from None
        else:
            return draining.result()
        finally:
            for task in (draining, vanishing):
                task.cancel()
            await asyncio.gather(draining, vanishing, return_exceptions=True)
