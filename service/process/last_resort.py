"""Ends a process that does not end by itself."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

logger = logging.getLogger(__name__)

LINE_SECONDS = 0.5  # for the last line of the log


class LastResort:
    """The forced end of the process after a time, even if its threads hang."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def end_within(self, seconds: float, exit_code: int) -> None:
        """End the process by force after `seconds`. This replaces an earlier deadline."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, _end, args=(exit_code,))
        self._timer.name = "last resort"
        self._timer.daemon = True
        self._timer.start()


def _end(exit_code: int) -> None:
    frames = sys._current_frames()
    frame_by_thread = {
        thread.name: f"{frame.f_code.co_filename}:{frame.f_lineno}"
        for thread in threading.enumerate()
        if (frame := frames.get(thread.ident or 0)) is not None and not thread.daemon
    }
    logger.critical("EndedByForce exit_code=%d threads=%r", exit_code, frame_by_thread)
    time.sleep(LINE_SECONDS)
    os._exit(exit_code)
