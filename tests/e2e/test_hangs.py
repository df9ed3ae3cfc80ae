"""Things outside of the process hang, such as the reader of its output: no call and no shutdown waits for them."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any

import pytest

from kvdepot import Credentials, DepotClient, DepotError
from telemetry.events import Event
from tests.e2e.access.calling import write_tenants
from tests.e2e.access.conftest import BLUE, OPS, RED
from tests.e2e.scraping import Page, get
from tests.e2e.test_server import (
    CHUNK_SIZE,
    COMMAND,
    REPOSITORY,
    Serve,
    attached,
    health,
    serve,
)
from tests.fakes.waiting import wait_until

__all__ = ["serve"]

DRAIN_SECONDS = 1.0
DRAIN = ("--drain-timeout", f"{DRAIN_SECONDS}s")
END_SECONDS = DRAIN_SECONDS + 10.0  # with a machine that is busy
QUICKLY_SECONDS = 5.0  # for a call that takes a millisecond, with a machine that is busy


class Depot:
    """`kvdepot serve` on a unix socket, with the output that is given to it."""

    def __init__(self, folder: Path, stdout: IO[bytes] | int, stderr: IO[bytes] | int, *flags: str) -> None:
        self.address = f"unix:{folder}/depot.sock"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.metrics_address = f"127.0.0.1:{free.getsockname()[1]}"
        where = ("--listen", self.address, "--prometheus-port", self.metrics_address.rpartition(":")[2])
        self.process = subprocess.Popen(
            [*COMMAND, "--l1-size", "16MiB", "--chunk-size", str(CHUNK_SIZE), *where, *DRAIN, *flags],
            cwd=REPOSITORY,
            env={name: value for name, value in os.environ.items() if not name.startswith("KVDEPOT_")}
            | {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            process_group=0,
        )
        wait_until(lambda: self.process.poll() is not None or health(self.address) == "SERVING")
        assert self.process.poll() is None

    def ends(self) -> int:
        """Return the exit code after SIGTERM, which comes in time."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_SECONDS)

    def num_dropped(self, stream: str) -> float:
        """Return the number of dropped lines so far."""
        return Page(get(self.metrics_address)).sum("kvdepot_log_lines_dropped_total", stream=stream)


Start = Callable[..., Depot]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(stdout: IO[bytes] | int, stderr: IO[bytes] | int, *flags: str) -> Depot:
            depot = Depot(tmp_path, stdout, stderr, *flags)
            stack.callback(depot.process.wait)
            stack.callback(depot.process.kill)
            return depot

        yield start


@pytest.fixture
def pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The ends to read from and to write to, of a pipe that holds little."""
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(read_fd, "rb") as reader, os.fdopen(write_fd, "wb") as writer:
        yield reader, writer


def store_until(address: str, enough: Callable[[], bool], at_least: int = 0) -> float:
    """Store and end small sessions until it is enough. Return the seconds of the slowest."""
    slowest_seconds = 0.0
    with DepotClient(address) as client, attached(client) as attachment:
        number = 0
        while number < at_least or number % 50 or not enough():
            start = time.monotonic()
            attachment.store(f"s{number}", [number, *range(1, CHUNK_SIZE)], [range(4)])
            attachment.end_session(f"s{number}")
            slowest_seconds = max(slowest_seconds, time.monotonic() - start)
            number += 1
    return slowest_seconds


# The output is not read


def test_unread_output_delays_neither_calls_nor_the_shutdown(start: Start, pipe: Any) -> None:
    _, writer = pipe
    depot = start(writer, writer, "--log-level", "debug", "--enable-tracing", "--trace-console")
    assert store_until(depot.address, lambda: True, at_least=700) < QUICKLY_SECONDS
    assert depot.ends() == 0


def test_a_reader_that_returns_learns_how_many_lines_are_missing(start: Start, pipe: Any) -> None:
    reader, writer = pipe
    depot = start(subprocess.DEVNULL, writer, "--log-level", "debug")
    writer.close()
    assert store_until(depot.address, lambda: depot.num_dropped("stderr") > 100) < QUICKLY_SECONDS
    lines = iter(reader.readline, b"")
    reports = (line.decode() for line in lines if b" LogLinesDropped num_lines=" in line)
    num_reported = int(next(reports).rpartition("=")[2])
    assert 100 < num_reported <= depot.num_dropped("stderr")
    assert depot.ends() == 0
    rest = [line.decode() for line in lines]
    assert any(" ServerDraining" in line for line in rest)
    assert rest[-1].endswith("\n")


def test_a_disk_that_is_full_costs_the_log_and_nothing_else(start: Start) -> None:
    with Path("/dev/full").open("wb") as full:
        depot = start(full, full, "--enable-tracing", "--trace-console")
        assert store_until(depot.address, lambda: depot.num_dropped("stderr") > 0) < QUICKLY_SECONDS
        assert depot.num_dropped("stdout") >= 1
        assert depot.ends() == 0


def test_output_whose_reader_has_gone_ends_nothing(start: Start, pipe: Any) -> None:
    reader, writer = pipe
    depot = start(writer, writer)
    reader.close()
    assert store_until(depot.address, lambda: depot.num_dropped("stderr") > 0) < QUICKLY_SECONDS
    assert depot.ends() == 0


# A file


def may_call(address: str, name: str) -> bool:
    with DepotClient(address, credentials=Credentials(token=f"{name}-token")) as client:
        try:
            client.list_sessions()
        except DepotError as error:
            assert error.code.name == "UNAUTHENTICATED"
            return False
        return True


def replace_by_fifo(path: Path) -> None:
    fifo = path.with_suffix(".fifo")
    os.mkfifo(fifo)
    fifo.replace(path)


def test_a_tenants_file_that_becomes_a_fifo_is_reported_and_delays_nothing(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    write_tenants(path, RED, OPS)
    server = serve(
        *("--listen", f"unix:{tmp_path}/depot.sock", "--tenants", str(path)),
        *DRAIN,
    )
    (address,) = server.addresses()
    replace_by_fifo(path)
    wait_until(lambda: "is not an ordinary file" in server.said())
    assert may_call(address, "red")
    write_tenants(tmp_path / "new.yaml", BLUE, OPS)
    (tmp_path / "new.yaml").replace(path)
    wait_until(lambda: may_call(address, "blue"))
    assert not may_call(address, "red")
    replace_by_fifo(path)
    wait_until(lambda: server.said().count("is not an ordinary file") > 1)
    server.send(signal.SIGTERM)
    assert server.process.wait(END_SECONDS) == 0


def test_a_tenants_file_that_is_a_fifo_refuses_to_start(serve: Serve, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tenants.yaml")
    server = serve("--listen", "127.0.0.1:0", "--tenants", str(tmp_path / "tenants.yaml"))
    assert server.exit_code() == 2
    assert "is not an ordinary file" in server.said()


# Collectors and scrapers


class LeavesThread:
    """A subscriber with a thread that never ends, and that Python waits for at exit."""

    name = "leaves thread"

    def __init__(self) -> None:
        threading.Thread(target=threading.Event().wait, name="left").start()

    def handle(self, batch: Sequence[Event]) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_collector_that_never_answers_does_not_hold_up_the_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        server = serve(
            *("--listen", "127.0.0.1:0", *DRAIN),
            *("--enable-tracing", "--otlp-endpoint", endpoint),
        )
        (address,) = server.addresses()
        with DepotClient(address) as client, attached(client) as attachment:
            attachment.lookup("s", range(CHUNK_SIZE))
        silent.accept()
        server.send(signal.SIGTERM)
        assert server.process.wait(END_SECONDS) == 0
        assert "EndedByForce" not in server.said()


def test_subscribers_that_never_return_do_not_delay_the_end(serve: Serve) -> None:
    blocking = "tests.e2e.test_own_subscribers:Blocking"
    server = serve(
        *("--listen", "127.0.0.1:0", *DRAIN),
        *("--subscriber", blocking, "--subscriber", blocking, "--subscriber", blocking, "--subscriber", blocking),
    )
    server.addresses()
    server.send(signal.SIGTERM)
    assert server.process.wait(END_SECONDS) == 0
    assert "SubscriberAbandoned subscriber='blocking'" in server.said()


def test_a_thread_that_never_ends_does_not_hold_up_the_end(serve: Serve) -> None:
    server = serve("--listen", "127.0.0.1:0", *DRAIN, "--subscriber", "tests.e2e.test_hangs:LeavesThread")
    server.addresses()
    server.send(signal.SIGTERM)
    assert server.process.wait(END_SECONDS) == 0
    assert re.search("EndedByForce exit_code=0 threads={.*'left': '.*threading.py", server.said())
