"""Standard output and error of the server: the log, the line with its addresses, spans."""

from __future__ import annotations

import atexit
import io
import logging
import sys
from time import monotonic

import grpc

from service.settings import LogFormat, Settings
from telemetry.logs.detached_stream import DetachedStream
from telemetry.logs.line_format import JsonFormat, TextFormat
from telemetry.logs.throttling import LineThrottle
from telemetry.metrics import definitions
from telemetry.metrics.snapshot import Scalars

FINISH_SECONDS = 1.0  # for the last lines, at the end of the process


class Output:
    """Standard output and error that never block the process.

    A stream that is closed, or has no file descriptor, stays as it is.
    """

    def __init__(self, streams: tuple[DetachedStream, ...]) -> None:
        self._streams = streams

    @classmethod
    def detached(cls) -> Output:
        """Replace `sys.stdout` and `sys.stderr` with detached streams. At exit their last lines are written."""
        streams = []
        for name in ("stdout", "stderr"):
            try:
                fd = getattr(sys, name).fileno()
            except (AttributeError, io.UnsupportedOperation):  # None where the descriptor is closed
                continue
            stream = DetachedStream(fd, name)
            setattr(sys, name, stream)
            streams.append(stream)
        output = cls(tuple(streams))
        atexit.register(output.finish)
        return output

    def log_as(self, settings: Settings) -> None:
        """Log to standard error, with Python's warnings."""
        format_of = JsonFormat() if settings.log_format is LogFormat.JSON else TextFormat()
        handler = logging.StreamHandler()
        handler.setFormatter(format_of)
        handler.addFilter(is_about_the_depot)
        handler.addFilter(LineThrottle())
        logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
        logging.captureWarnings(True)
        for stream in self._streams:
            if stream is sys.stderr:
                stream.report = lambda num_lines: format_of.format(_missing(num_lines))

    def read(self) -> Scalars:
        """Return the numbers of dropped lines."""
        return {definitions.LOG_LINES_DROPPED: {(each.name,): each.num_dropped_lines for each in self._streams}}

    def finish(self) -> None:
        """Write the waiting lines, in `FINISH_SECONDS` at most."""
        deadline = monotonic() + FINISH_SECONDS
        for stream in self._streams:
            stream.finish(deadline)


def is_about_the_depot(record: logging.LogRecord) -> bool:
    """Return whether a record may be logged: all but gRPC's record of a failed answer.

    An answer fails if its client has left. gRPC logs nothing if it first learns that the client left. If it first
    learns that the answer failed, it logs an error with a traceback.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


def _missing(num_lines: int) -> logging.LogRecord:
    message, facts = "LogLinesDropped num_lines=%(num_lines)d", {"num_lines": num_lines}
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (facts,), None)
    record.event = "LogLinesDropped"
    return record
