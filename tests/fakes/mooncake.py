"""A real Mooncake on this machine: its master, and nodes that lend memory to it, each in a process of its own."""

from __future__ import annotations

import mmap
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from service.tiers.address.address import TierAddress
from service.tiers.record import RECORD_BYTES
from service.tiers.store import Part, Place, Role, StoreContext
from service.tiers.stores.mooncake import MooncakeStore
from tests.fakes.waiting import wait_until


class Master:
    """Mooncake's master, at a free port. It has no chunks of its own, and forgets where they are when it ends.

    It believes for `client_ttl_seconds` in a node that is silent.
    """

    def __init__(self, log: Path, *, client_ttl_seconds: int = 5) -> None:
        self._client_ttl_seconds = client_ttl_seconds
        self.port = _free_port()
        self._metrics_port = _free_port()
        self._log = log
        self._process = self._started()

    def address(self, segment: str = "0") -> TierAddress:
        """Return the address of the tier, with what this node lends."""
        return TierAddress.parse(f"mooncake://127.0.0.1:{self.port}?segment={segment}")

    def open(self, role: Role, l1: memoryview) -> MooncakeStore:
        """Return a client in this process."""
        return MooncakeStore(StoreContext(address=self.address(), role=role, l1=l1))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process during the block."""
        with paused(self._process):
            yield

    @contextmanager
    def dead(self) -> Iterator[None]:
        """Kill the process, and start another one after the block."""
        self.end()
        yield
        self._process = self._started()

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        ports = ("--rpc_address", "127.0.0.1", "--rpc_port", str(self.port))
        metrics = ("--metrics_host", "127.0.0.1", "--metrics_port", str(self._metrics_port))
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [_program(), *ports, *metrics, "--client_ttl", str(self._client_ttl_seconds)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: _answers(self.port))
        return process


class Node:
    """A process that lends memory, as the worker of a depot with the role OWN does."""

    def __init__(self, master: Master, segment: str) -> None:
        self._process = _started("lend", master, segment)
        _expect(self._process, b"lends")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process during the block."""
        with paused(self._process):
            yield

    def kill(self) -> None:
        """Kill the process, so that the master does not know."""
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        """Let the node leave the cluster. Idempotent."""
        if self._process.poll() is None:
            self._process.communicate(timeout=10)


class Writer:
    """A process that writes a chunk of 8 MiB."""

    def __init__(self, master: Master, name: bytes) -> None:
        self._process = _started("write", master, name.hex())
        _expect(self._process, b"writes")

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def paused(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop a process during the block, and wait until it is stopped."""
    process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def skip_without_mooncake() -> None:
    """Skip the test where Mooncake is not there."""
    if find_spec("mooncake") is None:
        pytest.skip("mooncake is not there: `make test-servers` fetches it")


def _started(what: str, master: Master, argument: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.mooncake", what, str(master.port), argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _expect(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == line


def _program() -> Path:
    spec = find_spec("mooncake")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("mooncake_master")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _lend(port: str, segment: str) -> None:
    """Lend memory until the standard input ends."""
    address = TierAddress.parse(f"mooncake://127.0.0.1:{port}?segment={segment}")
    store = MooncakeStore(StoreContext(address=address, role=Role.OWN, l1=memoryview(b"")))
    _say("lends")
    sys.stdin.read()
    store.close()


def _write(port: str, name: str) -> None:
    """Write a chunk of 8 MiB."""
    address = TierAddress.parse(f"mooncake://127.0.0.1:{port}?segment=0")
    l1 = memoryview(mmap.mmap(-1, 8 << 20))
    store = MooncakeStore(StoreContext(address=address, role=Role.WRITE, l1=l1))
    _say("writes")
    list(store.write_from([Part(Place(bytes.fromhex(name)), l1, len(l1), bytes(RECORD_BYTES))]))


if __name__ == "__main__":
    {"lend": _lend, "write": _write}[sys.argv[1]](*sys.argv[2:])
