"""The latency that another client sees: a process of its own polls GetStatus all the time.

``python -m tests.e2e.latency ADDRESS`` polls until its standard input ends. For each line that comes there it answers
with the longest poll since the line before, in milliseconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import grpc

from kvdepot.v1.admin_pb2 import GetStatusRequest
from kvdepot.v1.admin_pb2_grpc import AdminServiceStub

PAUSE_SECONDS = 0.001
POLL_SECONDS = 300.0


class Polls:
    """A client that polls a depot."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._input = cast("IO[str]", process.stdin)
        self._output = cast("IO[str]", process.stdout)

    def longest_ms(self) -> float:
        """Return the longest poll since the previous call of this method. A running poll counts."""
        self._input.write("\n")
        self._input.flush()
        return float(self._output.readline())


@contextmanager
def polled(address: str) -> Iterator[Polls]:
    """Poll the depot from another client during the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.latency", address],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        polls = Polls(process)
        try:
            polls.longest_ms()  # the first polls wait for the connection
            yield polls
        finally:
            process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
            process.wait()


def main(address: str) -> None:
    """Poll, and answer."""
    asked = threading.Semaphore(0)
    ended = threading.Event()

    def listen() -> None:
        for _ in sys.stdin:
            asked.release()
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    with grpc.insecure_channel(address) as channel:
        stub = AdminServiceStub(channel)
        longest_seconds = 0.0
        while not ended.is_set():
            is_asked = asked.acquire(blocking=False)
            begin = time.perf_counter()
            stub.GetStatus(GetStatusRequest(), timeout=POLL_SECONDS, wait_for_ready=True)
            longest_seconds = max(longest_seconds, time.perf_counter() - begin)
            if is_asked:
                sys.stdout.write(f"{longest_seconds * 1e3}\n")
                sys.stdout.flush()
                longest_seconds = 0.0
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1])
