"""I/O workers: real processes with a faulty store."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.host.streaming_copy import built_library
from service.l1.file_use import lock
from service.tiers.address.address import TierAddress
from service.tiers.io_worker.job import JobEnd, SmallJob
from service.tiers.io_worker.process import IoWorker, Launch
from service.tiers.kinds import StoreKind
from service.tiers.store import Capabilities, Role, StoreError, StoreUnusable
from tests.fakes.faulty_store import KIND, LOCAL_KIND, Folder
from tests.fakes.tiers import SmallL1
from tests.fakes.waiting import eventually
from tests.test_imports import REPOSITORY

EXISTS = {"verb": "exists", "names": ["00"]}


class Fixture:
    """What I/O workers are started with."""

    def __init__(self, path: Path) -> None:
        self.folder = Folder(path)
        self.l1 = SmallL1()
        self.launch = Launch(
            address=self.folder.address,
            kind=KIND,
            l1_fd=self.l1.fd,
            layout=self.l1.layout,
            environment={"PATH": os.environ["PATH"], "SECRET": "of the depot"},
            library=built_library(),
        )

    @asynccontextmanager
    async def worker(self, role: Role = Role.READ) -> AsyncIterator[IoWorker]:
        worker = await IoWorker.start(self.launch, role, seconds=20.0)
        try:
            yield worker
        finally:
            await worker.kill()
            assert not is_there(worker.pid), "a process is left"


@pytest.fixture
def fixture(tmp_path: Path) -> Iterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    fixture.l1.close()


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def links_of(pid: int) -> list[str]:
    """Return what the descriptors of a process are."""
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]


async def end_of(worker: IoWorker, seconds: float = 20.0) -> tuple[JobEnd, str]:
    job = SmallJob(EXISTS, seconds=seconds)
    end = await worker.carry_out(job)
    assert (job.end, job.detail) == end
    return end


async def test_it_does_one_job_after_the_other_and_closes_its_store_at_the_end(fixture: Fixture) -> None:
    async with fixture.worker() as worker:
        assert await end_of(worker) == (JobEnd.DONE, "")
        assert await end_of(worker) == (JobEnd.DONE, "")
        assert fixture.folder.pids() == [worker.pid]
        await worker.stop()
        assert worker.is_reaped
        assert fixture.folder.pids() == []


async def test_it_knows_no_other_credentials_and_has_no_secret_in_its_command_line(fixture: Fixture) -> None:
    async with fixture.worker() as worker:
        proc = Path(f"/proc/{worker.pid}")
        variables = dict(each.split("=", 1) for each in proc.joinpath("environ").read_text().split("\0") if each)
        assert variables.keys() == {"PATH", "PYTHONPATH", "PYTHONSAFEPATH"}
        assert str(fixture.folder.path) not in proc.joinpath("cmdline").read_text()
        assert proc.joinpath("comm").read_text().strip() == "kvdepot-read"


async def test_it_has_only_the_descriptors_that_it_needs(fixture: Fixture) -> None:
    inheritable = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    async with fixture.worker() as worker:
        links = links_of(worker.pid)
        assert sum("memfd" in link for link in links) == 1
        assert sum("socket" in link for link in links) == 1
        assert len(links) == 5
    os.close(inheritable)


async def test_l1_stays_locked_until_it_is_dead(fixture: Fixture) -> None:
    as_depot = os.open(f"/proc/self/fd/{fixture.l1.fd}", os.O_RDWR)
    next_depot = os.open(f"/proc/self/fd/{fixture.l1.fd}", os.O_RDWR)
    assert lock(as_depot)
    fixture.launch = replace(fixture.launch, l1_fd=as_depot)
    async with fixture.worker() as worker:
        os.close(as_depot)  # as the end of the depot does
        assert not lock(next_depot)
        os.kill(worker.pid, signal.SIGKILL)
        await eventually(lambda: not is_there(worker.pid))
        assert lock(next_depot)
    os.close(next_depot)


async def test_signals_to_the_whole_unit_do_not_end_it(fixture: Fixture) -> None:
    async with fixture.worker() as worker:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
        assert await end_of(worker) == (JobEnd.DONE, "")


async def test_after_its_deadline_it_is_dead_before_the_job_ends(fixture: Fixture) -> None:
    async with fixture.worker() as worker:
        fixture.folder.fault(exists="hangs")
        start = time.monotonic()
        end, _ = await end_of(worker, seconds=0.05)
        assert end is JobEnd.DEADLINE
        assert worker.is_dead and worker.is_reaped
        assert not is_there(worker.pid)
        assert time.monotonic() - start < 10  # on any machine; about 0.06 s on an idle one


async def test_a_stopped_process_is_killed_as_well(fixture: Fixture) -> None:
    async with fixture.worker() as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        assert (await end_of(worker, seconds=0.05))[0] is JobEnd.DEADLINE
        assert worker.is_reaped


@pytest.mark.parametrize("fault", ["exits", "segfault", "killed"])
async def test_a_crash_ends_the_job(fixture: Fixture, fault: str) -> None:
    async with fixture.worker() as worker:
        fixture.folder.fault(exists=fault)
        assert (await end_of(worker))[0] is JobEnd.CRASH
        assert worker.is_reaped


async def test_a_crash_between_two_jobs_is_noticed(fixture: Fixture) -> None:
    lost = asyncio.Event()
    worker = await IoWorker.start(fixture.launch, Role.ASK, seconds=20.0, on_lost=lost.set)
    os.kill(worker.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await lost.wait()
    assert worker.is_dead
    assert (await end_of(worker))[0] is JobEnd.CRASH
    await worker.kill()
    assert worker.is_reaped


async def test_errors_of_the_store_end_the_job_and_not_the_process(fixture: Fixture) -> None:
    async with fixture.worker() as worker:
        fixture.folder.fault(exists="raises")
        assert await end_of(worker) == (JobEnd.REFUSED, "the server says no")
        fixture.folder.fault(exists="bug")
        assert await end_of(worker) == (JobEnd.REFUSED, "ZeroDivisionError: a bug of the store")
        fixture.folder.fault()
        assert await end_of(worker) == (JobEnd.DONE, "")


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("unusable", StoreUnusable, "the password is wrong"),
        ("raises", StoreError, "the server says no"),
        ("bug", StoreError, "a bug of the store"),
        ("exits", StoreError, "ended by itself"),
    ],
)
async def test_an_opening_that_fails_says_why_and_leaves_no_process(
    fixture: Fixture, fault: str, error: type[StoreError], message: str
) -> None:
    fixture.folder.fault(open=fault)
    with pytest.raises(error, match=message) as raised:
        await IoWorker.start(fixture.launch, Role.ASK, seconds=20.0)
    assert type(raised.value) is error
    assert not any(map(is_there, fixture.folder.pids()))


async def test_an_opening_that_hangs_is_given_up(fixture: Fixture) -> None:
    fixture.folder.fault(open="hangs")
    with pytest.raises(StoreError, match="took too long"):
        await IoWorker.start(fixture.launch, Role.ASK, seconds=0.3)
    assert not any(map(is_there, fixture.folder.pids()))


async def test_a_store_that_is_not_installed_is_unusable(fixture: Fixture) -> None:
    kind = StoreKind(entry="a_package_that_is_not_there:Store", capabilities=Capabilities())
    with pytest.raises(StoreUnusable, match="a_package_that_is_not_there"):
        await IoWorker.start(replace(fixture.launch, kind=kind), Role.ASK, seconds=20.0)


@pytest.mark.parametrize("secret", [b"too short", b"zz" * 32, None])
async def test_a_wrong_secret_file_is_unusable(fixture: Fixture, tmp_path: Path, secret: bytes | None) -> None:
    path = tmp_path / "secret"
    if secret is not None:
        path.write_bytes(secret)
    options = {"folder": str(tmp_path), "secret_file": str(path)}
    address = TierAddress(kind="faulty", name="faulty", options=options)
    with pytest.raises(StoreUnusable, match="secret_file"):
        await IoWorker.start(replace(fixture.launch, address=address), Role.ASK, seconds=20.0)


async def test_it_works_without_the_compiled_library(fixture: Fixture) -> None:
    fixture.launch = replace(fixture.launch, library=None)
    async with fixture.worker() as worker:
        assert await end_of(worker) == (JobEnd.DONE, "")


async def test_a_scan_sends_what_the_store_has_in_its_order(fixture: Fixture) -> None:
    fixture.launch = replace(fixture.launch, kind=LOCAL_KIND)
    async with fixture.worker(Role.WRITE) as worker:
        scan = SmallJob({"verb": "scan"}, seconds=20.0)
        assert await worker.carry_out(scan) == (JobEnd.DONE, "")
        assert scan.blobs == []


async def test_cancelling_a_job_kills_the_process(fixture: Fixture) -> None:
    async with fixture.worker() as worker:
        fixture.folder.fault(exists="hangs")
        job = SmallJob(EXISTS, seconds=60.0)
        doing = asyncio.ensure_future(worker.carry_out(job))
        await eventually(lambda: fixture.folder.calls("exists") == [1])
        doing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doing
        assert job.end is JobEnd.STOPPED
        assert worker.is_reaped


PARENT = """
import asyncio, sys
from pathlib import Path
from service.tiers.store import Role
from service.tiers.io_worker.process import IoWorker
from tests.service.tiers.io_worker.test_io_worker import Fixture

async def main():
    worker = await IoWorker.start(Fixture(Path(sys.argv[1])).launch, Role.READ, seconds=20.0)
    print(worker.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_it_dies_with_the_depot_even_in_the_middle_of_a_call(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'clients/python'}"}
    command = sys.executable, "-c", PARENT, str(tmp_path)
    parent = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    os.kill(pid, signal.SIGSTOP)  # it notices nothing, as in a call that hangs
    parent.kill()
    await parent.wait()
    await eventually(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    """Return whether a process is there and no zombie, which a container without an init may keep."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
