"""Work that the card has not done yet: one queue for all streams, and a thread that does it."""

import queue
import threading
import time
from typing import Any


class Line:
    """Work in the order in which it came. If the process is killed, the rest is never done."""

    def __init__(self):
        self._queue: queue.Queue[Any] = queue.Queue()
        self._thread = None
        self._error = None
        self._written = set()  # addresses of the storages that work in the line writes to

    @property
    def is_busy(self):
        """Return whether there is work that is not done."""
        return self._queue.unfinished_tasks > 0

    def add(self, work, written=0):
        """Put work at the end of the line, which may write to the storage at an address."""
        if not self.is_busy:
            self._written.clear()
        self._written.add(written)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="simulated-card")
            self._thread.start()
        self._queue.put(work)

    def writes_to(self, address):
        """Return whether work in the queue writes to a storage."""
        return self.is_busy and address in self._written

    def sleep(self, seconds):
        """Keep the card busy for a while."""
        self.add(lambda: time.sleep(seconds))

    def wait(self):
        """Wait until all is done."""
        if self.is_busy:
            self._queue.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self):
        while True:
            work = self._queue.get()
            try:
                work()
            except Exception as error:  # the next wait raises it
                self._error = error
            finally:
                self._queue.task_done()


line = Line()
