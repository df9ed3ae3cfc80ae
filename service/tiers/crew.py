"""The I/O workers of a tier: started, given jobs, and replaced when they die."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from service.tiers.breaker import Breaker
from service.tiers.io_worker.job import Job, JobEnd
from service.tiers.io_worker.process import IoWorker, Launch
from service.tiers.store import Role, StoreError
from service.tiers.traffic.accounts import Accounts

logger = logging.getLogger(__name__)

OPEN_SECONDS = 5.0
OWNER_OPEN_SECONDS = 120.0
"""The owner of a segment may have to make its memory first."""
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 10.0


class TierJob(Job, Protocol):
    """A job of a tier. `failure` says after it why a part failed, though the store raised nothing."""

    @property
    def failure(self) -> str:
        """Why a part failed; empty if none did."""


class Crew:
    """The I/O workers. `jobs` has for each role what gives the next job, or None if there is none.

    Only while the breaker is closed they take jobs and dead ones are replaced.
    """

    def __init__(
        self,
        launch: Launch,
        breaker: Breaker,
        accounts: Accounts,
        jobs: Mapping[Role, Callable[[], TierJob | None]],
    ) -> None:
        self._launch = launch
        self._breaker = breaker
        self._accounts = accounts
        self._jobs = jobs
        self._wakes = {role: asyncio.Event() for role in Role}
        self.workers: set[IoWorker] = set()
        """Those that have not been reaped."""

    def __repr__(self) -> str:
        return f"<Crew of {self._launch.address.name}, {len(self.workers)} I/O workers>"

    def wake(self, role: Role) -> None:
        """Have the I/O workers of a role look for a job."""
        self._wakes[role].set()

    def wake_all(self) -> None:
        """Have all look whether something has changed."""
        for wake in self._wakes.values():
            wake.set()

    async def start(self, role: Role, seconds: float = OPEN_SECONDS) -> IoWorker:
        """Start an I/O worker. It counts as one of the crew until it is stopped or reaped.

        Raises: StoreUnusable, StoreError.
        """
        worker = await IoWorker.start(self._launch, role, seconds=seconds, on_lost=lambda: self.wake(role))
        self.workers.add(worker)
        return worker

    async def stop(self, worker: IoWorker) -> None:
        """End an I/O worker."""
        try:
            await worker.stop()
        finally:
            self._discard(worker)

    async def work(self, tasks: asyncio.TaskGroup, role: Role, worker: IoWorker | None = None) -> None:
        """Keep one I/O worker of a role at work, until this is cancelled. `worker` is the first one."""
        num_deaths = 0
        while True:
            if worker is None:
                await self._until_closed(role)
                try:
                    worker = await self.start(role)
                except StoreError as error:
                    self._breaker.note_failure(str(error))
            if worker is not None:
                has_succeeded = await self._serve(tasks, role, worker)
                num_deaths = 0 if has_succeeded else num_deaths
            worker = None
            num_deaths += 1
            await asyncio.sleep(_pause_seconds(num_deaths))

    async def own(self, tasks: asyncio.TaskGroup) -> None:
        """Keep an I/O worker that owns memory of this machine, until this is cancelled."""
        num_deaths = 0
        while True:
            try:
                worker = await self.start(Role.OWN, OWNER_OPEN_SECONDS)
            except StoreError as error:
                logger.warning("the memory of tier %s is not there: %s", self._launch.address.name, error)
            else:
                await self._serve(tasks, Role.OWN, worker)
            num_deaths += 1
            await asyncio.sleep(_pause_seconds(num_deaths))

    async def _serve(self, tasks: asyncio.TaskGroup, role: Role, worker: IoWorker) -> bool:
        """Do jobs until the I/O worker is dead. Return whether it has done one."""
        wake, take = self._wakes[role], self._jobs.get(role, lambda: None)
        has_succeeded = False
        try:
            while True:
                job = None if self._breaker.is_open else take()
                if job is not None:
                    end, detail = await worker.carry_out(job)
                    self._note(role, job, end, detail)
                    has_succeeded |= end is JobEnd.DONE
                    if end.is_death:
                        break
                elif worker.is_dead:
                    self._accounts.ended(role, JobEnd.CRASH, "", 0)
                    self._breaker.note_failure("an I/O worker ended by itself")
                    break
                else:
                    wake.clear()
                    await wake.wait()
            await worker.kill()
        except asyncio.CancelledError:
            await self.stop(worker)
            raise
        if worker.is_reaped:
            self.workers.discard(worker)
        else:
            tasks.create_task(self._reap(worker))
        return has_succeeded

    def _note(self, role: Role, job: TierJob, end: JobEnd, detail: str) -> None:
        if end.is_death:
            self._accounts.ended(role, end, job.verb, job.num_parts)
        if end in (JobEnd.DEADLINE, JobEnd.PROTOCOL):
            self._breaker.note_kill(f"{job.verb}: {detail}")
        elif end is not JobEnd.DONE or job.failure:
            self._breaker.note_failure(f"{job.verb}: {detail or job.failure}")

    async def _reap(self, worker: IoWorker) -> None:
        await worker.reap()
        self._discard(worker)

    def _discard(self, worker: IoWorker) -> None:
        if worker.is_reaped:
            self.workers.discard(worker)

    async def _until_closed(self, role: Role) -> None:
        while self._breaker.is_open:
            self._wakes[role].clear()
            await self._wakes[role].wait()


def _pause_seconds(num_deaths: int) -> float:
    """Return the pause before a replacement. The first one comes without."""
    if num_deaths <= 1:
        return 0.0
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(num_deaths - 2, 16), MAX_PAUSE_SECONDS)
