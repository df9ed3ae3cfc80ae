"""The peer's processes: its server, and the driver that is its engine; both in an environment of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.peer import shapes

REPOSITORY = Path(__file__).parents[2]
PYTHON = REPOSITORY / ".venv-peer" / "bin" / "python"
START_SECONDS = 120.0
ANSWER_SECONDS = 180.0
END_SECONDS = 10.0
L1_GB = 2.5

PRIVATE = {"LMCACHE_TRACK_USAGE": "false", "DO_NOT_TRACK": "1"}  # nothing is sent to anybody
# Its temporary tensors stay in the heap, and so cost no page faults.
KEEPING_HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
# Its OpenMP threads ask 1,000 times, not 300,000, whether the others are done before they sleep: as quick on a quiet
# machine, and ten times quicker on a busy one. More CPU workers or fewer gRPC workers change nothing.
SPINNING_LITTLE = {"GOMP_SPINCOUNT": "1000"}
QUIET = {"LMCACHE_LOG_LEVEL": "ERROR"}


class PeerFailed(Exception):
    """A process of the peer failed; the message holds the last lines that it wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How the peer is run."""

    transport: str
    tuned: bool

    def __str__(self) -> str:
        transport = {"zmq": "ZMQ", "grpc": "gRPC"}[self.transport]
        return f"LMCache over {transport}, {'tuned' if self.tuned else 'stock'}"

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the server, besides the ones that any setup on a CPU needs."""
        return ("--disable-observability",) if self.tuned else ()

    @property
    def variables(self) -> dict[str, str]:
        """The environment of server and driver."""
        tuning = KEEPING_HEAP | SPINNING_LITTLE | QUIET if self.tuned else {}
        return PRIVATE | tuning

    @property
    def scheme(self) -> str:
        """Of the server's address."""
        return {"zmq": "tcp", "grpc": "grpc"}[self.transport]


class Process:
    """A Python process of the peer's environment; what it says on standard error is kept for the case that it fails."""

    def __init__(
        self, name: str, *arguments: str, variables: dict[str, str], answers: bool, python: Path = PYTHON
    ) -> None:
        self._name = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("KVDEPOT_", "LMCACHE_"))
        }
        environment["PYTHONPATH"] = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))
        self._process = subprocess.Popen(
            [str(python), *arguments],
            cwd=REPOSITORY,
            env={**environment, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else self._errors,
            stderr=self._errors,
            process_group=0,
            text=True,
        )

    def write(self, line: str) -> None:
        """To its standard input. Raises: PeerFailed: it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failure("it is gone") from None

    def line(self, limit_seconds: float) -> str:
        """The next of its standard output. Raises: PeerFailed: it ended, or there was none in time."""
        assert self._process.stdout is not None
        with _killed_after(self._process, limit_seconds):
            line = self._process.stdout.readline()
        if not line:
            raise self.failure(f"it ended, or said nothing for {limit_seconds:g} s")
        return line

    def until_listening(self, port: int) -> None:
        """Raises: PeerFailed: it ended, or does not listen in time."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self.failure(f"it ended with exit code {self._process.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise self.failure(f"it does not listen after {START_SECONDS:g} s")

    def failure(self, why: str) -> PeerFailed:
        """What is known of why it failed."""
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip().splitlines()[-15:]
        return PeerFailed("\n".join([f"{self._name}: {why}", *tail]))

    def end(self) -> None:
        """Asks it to end, and kills it if it does not."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()


class Driver:
    """The driver's process: one command, one answer."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def tell(self, do: str, **arguments: object) -> dict[str, Any]:
        """Raises: PeerFailed: it could not do it, did not answer in time, or is gone."""
        self._process.write(json.dumps({"do": do, **arguments}))
        answer: dict[str, Any] = json.loads(self._process.line(ANSWER_SECONDS))
        if "error" in answer:
            raise self._process.failure(answer["error"])
        return answer


@contextmanager
def server(setup: Setup) -> Iterator[str]:
    """LMCache's server, as its engines on a CPU need it: yields its address.

    Raises:
        PeerFailed: it did not start.
    """
    port, metrics_port = _free_ports(2)
    arguments = [
        *("-m", "lmcache.v1.multiprocess.server", "--host", "127.0.0.1", "--port", str(port)),
        *("--transport", setup.transport, "--prometheus-port", str(metrics_port)),
        *("--chunk-size", str(shapes.CHUNK_SIZE), "--eviction-policy", "LRU"),
        # Shared memory is off by default, and excludes memory that is made on demand.
        *("--supported-transfer-mode", "engine_driven", "--shm-name", f"bench-{port}"),
        *("--no-l1-use-lazy", "--l1-size-gb", str(L1_GB)),
        *setup.flags,
    ]
    process = Process(str(setup), *arguments, variables=setup.variables, answers=False)
    try:
        process.until_listening(port)
        yield f"{setup.scheme}://127.0.0.1:{port}"
    finally:
        process.end()
        Path("/dev/shm", f"lmcache_l1_pool_bench-{port}").unlink(missing_ok=True)


@contextmanager
def driver(setup: Setup, url: str) -> Iterator[Driver]:
    """An engine of that server.

    Raises:
        PeerFailed: it did not reach the server.
    """
    arguments = ("-m", "benchmarks.peer.driver", url)
    process = Process(f"the engine of {setup}", *arguments, variables=setup.variables, answers=True)
    try:
        process.line(START_SECONDS)
        yield Driver(process)
    finally:
        process.end()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


@contextmanager
def _killed_after(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
