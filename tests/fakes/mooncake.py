"""A real Mooncake on this machine: its master, and nodes that lend memory to it, each in a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from service.tiers.address import TierAddress
from service.tiers.store import Role, StoreContext
from service.tiers.stores.mooncake import MooncakeStore
from tests.fakes.waiting import wait_until

CLIENT_TTL_SECONDS = 5
"""How long the master believes in a node that is silent."""


class Master:
    """Mooncake's master, at a free port. It has no chunks of its own, and forgets where they are when it ends."""

    def __init__(self, log: Path) -> None:
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
                [_program(), *ports, *metrics, "--client_ttl", str(CLIENT_TTL_SECONDS)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: _answers(self.port))
        return process


class Node:
    """A process that lends memory, as the worker of a depot with the role OWN does."""

    def __init__(self, master: Master, segment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.mooncake", str(master.port), segment],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"lends\n"

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
        """Let the node leave the cluster."""
        self._process.communicate(timeout=10)


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


def _lend(port: str, segment: str) -> None:
    address = TierAddress.parse(f"mooncake://127.0.0.1:{port}?segment={segment}")
    store = MooncakeStore(StoreContext(address=address, role=Role.OWN, l1=memoryview(bytearray(4096))))
    sys.stdout.write("lends\n")
    sys.stdout.flush()
    sys.stdin.read()
    store.close()


if __name__ == "__main__":
    _lend(*sys.argv[1:])
