"""The end of a process that does not end by itself."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

logger = logging.getLogger(__name__)

LINE_SECONDS = 0.5  # for the last line to be written


class LastResort:
    """Ends the process by force when its time is over, whatever its threads wait for."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def end_within(self, seconds: float, exit_code: int) -> None:
        """Give it so many seconds from now on, in place of what it had."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, _end, args=(exit_code,))
        self._timer.name = "last resort"
        self._timer.daemon = True
        self._timer.start()


def _end(exit_code: int) -> None:
    frames = sys._current_frames()
    places = {
        thread.name: f"{frame.f_code.co_filename}:{frame.f_lineno}"
        for thread in threading.enumerate()
        if (frame := frames.get(thread.ident or 0)) is not None and not thread.daemon
    }
    logger.critical("EndedByForce exit_code=%d threads=%r", exit_code, places)
    time.sleep(LINE_SECONDS)
    os._exit(exit_code)
