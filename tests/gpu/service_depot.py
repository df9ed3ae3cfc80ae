"""A depot process as a test sees it: its API, its metrics, its spans, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
from typing import Any

from kvdepot import DepotClient
from kvdepot.cli.processes import EMPTY, Child, ChildFailed
from kvdepot.v1.admin_pb2 import AttachedRank
from tests.e2e.scraping import Page, get

START_SECONDS = 60.0
END_SECONDS = 20.0


class ServiceDepot:
    """Starts at once; `client` waits until it serves."""

    def __init__(self, *flags: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kvdepot-")
        self.address = f"unix:{self._folder.name}/kvdepot.sock"
        self._metrics = f"127.0.0.1:{_free_port()}"
        port = self._metrics.partition(":")[2]
        arguments = ("-m", "kvdepot", "serve", "--listen", self.address, "--prometheus-port", port, *flags)
        self._child = Child("the depot", arguments, EMPTY)
        self._client: DepotClient | None = None
        self._lines: list[str] = []
        self._serves = threading.Event()
        self._failure: ChildFailed | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def client(self) -> DepotClient:
        """Return a client of the depot, which serves.

        Raises: ChildFailed.
        """
        if self._client is None:
            if not self._serves.wait(START_SECONDS) or self._failure is not None:
                raise self._failure or ChildFailed("the depot does not start")
            self._client = DepotClient(self.address)
        return self._client

    @property
    def in_use(self) -> tuple[int, int, int, int]:
        """Return the numbers of instances, sessions, leases and protected chunks."""
        status = self.client.get_status()
        return status.num_instances, status.num_sessions, status.num_leases, status.tiers[0].num_protected_chunks

    @property
    def is_populated(self) -> bool:
        """Return whether all pages of L1 are made and pinned."""
        tier = self.client.get_status().tiers[0]
        return tier.populated_bytes == tier.capacity_bytes

    def rank(self, instance_id: str) -> AttachedRank | None:
        """Return the depot's status of the only rank of an instance; None if that is not attached."""
        instances = self.client.list_instances().instances
        return next((each.ranks[0] for each in instances if each.instance_id == instance_id), None)

    def num_transfers(self, instance_id: str) -> int:
        """Return the number of running transfers of an instance."""
        rank = self.rank(instance_id)
        return 0 if rank is None else rank.num_transfers

    @property
    def metrics(self) -> Page:
        """Return the page of metrics."""
        return Page(get(self._metrics))

    @property
    def spans(self) -> list[dict[str, Any]]:
        """Return all output so far, with `--trace-console`."""
        return [json.loads(line) for line in self._lines if line.startswith("{")]

    def terminate(self) -> None:
        """Ask the depot to end, and do not wait for it."""
        os.kill(self._child.pid, signal.SIGTERM)

    def wait_ended(self, within_seconds: float) -> None:
        """Wait until the depot has ended.

        Raises: TimeoutError; ChildFailed if its exit code is not 0.
        """
        self._reader.join(within_seconds)
        if self._reader.is_alive():
            raise TimeoutError(f"the depot has not ended within {within_seconds:g} s")
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the depot, with SIGKILL if it takes too long."""
        if self._client is not None:
            self._client.close()
        if self._reader.is_alive():
            self.terminate()
            self._reader.join(END_SECONDS)
        self._child.end()
        self._folder.cleanup()

    def _read(self) -> None:
        try:
            for line in self._child.lines():
                self._lines.append(line)
                if self.address in line:
                    self._serves.set()
        except ChildFailed as failure:
            self._failure = failure
        self._serves.set()  # or it never will


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port
