"""A stream worker that a test advances, in place of a thread."""

from __future__ import annotations

from kernels.cuda.stream_worker import StreamWorker
from tests.kernels.cuda.fake_cuda import FakeCuda


class ManualThread:
    """Advances a stream worker in the steps of a test, as a thread of its own would."""

    def __init__(self, fake: FakeCuda, worker: StreamWorker, name: str) -> None:
        self.name = name
        self._fake = fake
        self.worker = worker
        fake.streams.synchronize("main", name)

    def advance(self) -> None:
        with self._fake.streams.acting(self.name):
            self.worker.advance()

    def join(self) -> None:
        while not self.worker.is_over:
            self.advance()
        self._fake.streams.synchronize(self.name, "main")
