"""The depot's side of one I/O worker: its process is started, given jobs, killed and reaped."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from service.l1.format import Layout
from service.tiers.address.address import TierAddress
from service.tiers.io_worker.connection import Connection
from service.tiers.io_worker.job import Job, JobEnd, SmallJob
from service.tiers.io_worker.messages import Message, ProtocolBroken, Verb, line
from service.tiers.kinds import StoreKind
from service.tiers.store import Role, StoreError, StoreUnusable

logger = logging.getLogger(__name__)

PACKAGES = Path(__file__).parents[3]
"""The folder that `service` and `kernels` are in."""
STOP_SECONDS = 3.0
"""The owner of a segment takes up to two to leave its cluster."""
REAP_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What all I/O workers of a tier are started with.

    `l1_fd` is L1's file, `environment` the depot's, of which an I/O worker gets what its kind may have. `library` is
    the compiled one of kernels/host, if there is one.
    """

    address: TierAddress
    kind: StoreKind
    l1_fd: int
    layout: Layout
    environment: Mapping[str, str]
    library: Path | None

    def variables(self) -> dict[str, str]:
        """Return the environment of an I/O worker."""
        variables = self.kind.environment(self.environment)
        paths = [str(PACKAGES), variables.get("PYTHONPATH", "")]
        return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONSAFEPATH": "1"}

    def opening(self, role: Role) -> Message:
        """Return the request that opens the store."""
        return {
            "verb": Verb.OPEN,
            "address": {**asdict(self.address), "options": dict(self.address.options)},
            "entry": self.kind.entry,
            "role": role,
            "slots_offset": self.layout.slots_offset,
            "slots_bytes": self.layout.total_bytes - self.layout.slots_offset,  # huge pages are mapped whole
            "l1_bytes": self.layout.l1_bytes,
            "library": str(self.library) if self.library is not None else None,
        }


class IoWorker:
    """A child process with an open store. It does one job at a time. `is_dead` says that it must be replaced."""

    def __init__(self, role: Role, process: asyncio.subprocess.Process, connection: Connection) -> None:
        self.role = role
        self._process = process
        self._connection = connection
        self._unended: tuple[Job, JobEnd, str] | None = None

    def __repr__(self) -> str:
        return f"<IoWorker {self.role}, pid {self._process.pid}, {'dead' if self.is_dead else 'alive'}>"

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended, or closed its socket."""
        return self._connection.is_lost or self.is_reaped

    @property
    def is_reaped(self) -> bool:
        """Whether the process has ended for certain, so that nothing of it touches L1 any more."""
        return self._process.returncode is not None

    @classmethod
    async def start(
        cls, launch: Launch, role: Role, *, seconds: float, on_lost: Callable[[], None] = lambda: None
    ) -> IoWorker:
        """Start a process and open the store in it, within `seconds`. `on_lost` is called when it ends.

        Raises: StoreUnusable, StoreError.
        """
        worker = await cls._spawn(launch, role, on_lost)
        job = SmallJob(launch.opening(role), seconds=seconds)
        try:
            end, detail = await worker.carry_out(job)
        except BaseException:
            await worker.kill()
            raise
        if end is JobEnd.DONE:
            return worker
        await worker.kill()
        if end is JobEnd.REFUSED and worker._connection.is_unusable:
            raise StoreUnusable(detail)
        raise StoreError(f"opening: {detail}")

    @classmethod
    async def _spawn(cls, launch: Launch, role: Role, on_lost: Callable[[], None]) -> IoWorker:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "service.tiers.io_worker", launch.address.name, role),
                *(str(os.getpid()), str(theirs.fileno()), str(launch.l1_fd)),
                pass_fds=(theirs.fileno(), launch.l1_fd),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # the depot's log, as for what libraries print
                env=launch.variables(),
            )
        except OSError as error:
            ours.close()
            raise StoreError(f"no process can be started: {error}") from error
        except BaseException:
            ours.close()  # the process ends when it finds this
            raise
        finally:
            theirs.close()
        _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(on_lost), sock=ours)
        return cls(role, process, connection)

    async def carry_out(self, job: Job) -> tuple[JobEnd, str]:
        """Do a job, and give it its end. Return the end, and why. After its time the process is dead before that.

        A process may not end within `REAP_SECONDS` of the kill, because the kernel does not let go of it. Then
        `is_reaped` is false, and the job gets its end from `reap`.
        """
        outcome = self._connection.send(job)
        timer = asyncio.get_running_loop().call_later(job.seconds, self._connection.pass_deadline)
        try:
            end, detail, result = await outcome
        except asyncio.CancelledError:
            await self.kill()
            self._give_end(job, JobEnd.STOPPED, "the depot ends it")
            raise
        finally:
            timer.cancel()
        if end is JobEnd.DONE:
            try:
                job.on_end(end, detail, result)
            except ProtocolBroken as error:
                end, detail = JobEnd.PROTOCOL, str(error)
            else:
                return end, detail
        if end.is_death:
            await self.kill()
        self._give_end(job, end, detail)
        return end, detail

    async def stop(self) -> None:
        """Have the process close its store and end, or kill it after `STOP_SECONDS`."""
        self._connection.say(line({"verb": Verb.CLOSE}))
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            logger.warning("%r is killed, it does not end", self)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Kill the process, and wait up to `REAP_SECONDS` until it is reaped. Idempotent."""
        if not self.is_reaped:
            with suppress(ProcessLookupError):
                self._process.kill()
        self._connection.close()
        try:
            async with asyncio.timeout(REAP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            logger.error("%r was killed and does not end: the kernel does not let go of it", self)

    async def reap(self) -> None:
        """Wait until a killed process is reaped. The job that it was doing gets its end now, if it has none yet."""
        await self._process.wait()
        if self._unended is not None:
            job, end, detail = self._unended
            self._unended = None
            job.on_end(end, detail, [])

    def _give_end(self, job: Job, end: JobEnd, detail: str) -> None:
        if (end.is_death or end is JobEnd.STOPPED) and not self.is_reaped:
            self._unended = job, end, detail
        else:
            job.on_end(end, detail, [])
