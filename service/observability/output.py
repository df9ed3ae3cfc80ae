"""What the server writes to standard output and error: the log, the line that says where it serves, spans."""

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
    """Standard output and error of a process that never waits for them; everything that prints or warns uses them.

    A stream that is closed, or is none of the operating system's, stays as it is.
    """

    def __init__(self, streams: tuple[DetachedStream, ...]) -> None:
        self._streams = streams

    @classmethod
    def detached(cls) -> Output:
        """Put detached streams in place of ``sys.stdout`` and ``sys.stderr``, which are finished at exit."""
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
        """Log to standard error, warnings of Python too."""
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
        """What was dropped, as figures."""
        return {definitions.LOG_LINES_DROPPED: {(each.name,): each.num_dropped_lines for each in self._streams}}

    def finish(self) -> None:
        """Write what waits, in `FINISH_SECONDS` at most."""
        deadline = monotonic() + FINISH_SECONDS
        for stream in self._streams:
            stream.finish(deadline)


def is_about_the_depot(record: logging.LogRecord) -> bool:
    """Whether a record may be logged: not gRPC's that an answer failed.

    An answer fails when its client has left. gRPC stays silent if it learns that the client left before it learns that
    the answer failed. In the other order it logs an error with a traceback.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


def _missing(num_lines: int) -> logging.LogRecord:
    message, facts = "LogLinesDropped num_lines=%(num_lines)d", {"num_lines": num_lines}
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (facts,), None)
    record.event = "LogLinesDropped"
    return record
