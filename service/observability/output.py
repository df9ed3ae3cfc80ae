"""Standard output and error of the server: the log, the line with its addresses, spans."""

from __future__ import annotations

import atexit
import io
import logging
import sys
import threading
from collections.abc import Sequence
from time import monotonic
from types import TracebackType

import grpc

from service.setting_types import LogFormat, LogLevel
from telemetry.logs.detached_stream import DetachedStream
from telemetry.logs.line_format import JsonFormat, TextFormat, log_event
from telemetry.logs.throttling import LineThrottle
from telemetry.metrics import definitions
from telemetry.metrics.snapshot import Scalars

logger = logging.getLogger(__name__)

FINISH_SECONDS = 1.0  # for the last lines, at the end of the process


class Output:
    """Standard output and error that never block the process.

    A stream that is closed, or has no file descriptor, stays as it is.
    """

    def __init__(self, streams: tuple[DetachedStream, ...]) -> None:
        self._streams = streams
        self.is_json = False
        self._handler: logging.Handler | None = None

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

    def log_as(self, log_format: LogFormat, log_level: LogLevel) -> None:
        """Log to standard error, with Python's warnings. In JSON also with what ends a thread or the process."""
        self.is_json = log_format is LogFormat.JSON
        format_of = JsonFormat() if self.is_json else TextFormat()
        handler = logging.StreamHandler()
        handler.setFormatter(format_of)
        handler.addFilter(is_about_the_depot)
        handler.addFilter(LineThrottle())
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        self._handler = handler
        logging.basicConfig(level=log_level.upper(), handlers=[handler])
        logging.captureWarnings(True)
        if self.is_json:
            _log_crashes()
        for stream in self._streams:
            if stream is sys.stderr:
                stream.report = lambda num_lines: format_of.format(_missing(num_lines))

    def say(self, line: str) -> None:
        """Write a line for people and scripts to standard output. In JSON it is an object like those of the log."""
        if self.is_json:
            line = JsonFormat().format(logging.LogRecord(__name__, logging.INFO, __file__, 0, line, None, None))
        print(line, flush=True)  # noqa: T201 - it is no line of the log

    def fail(self, name: str, headline: str, faults: Sequence[str]) -> None:
        """Say why the process ends: the headline and each fault in a line of its own, or all in one JSON line."""
        if self.is_json:
            log_event(logger, logging.CRITICAL, name, {"faults": list(faults)})
        else:
            print("\n".join([f"kvdepot: {headline}", *faults]), file=sys.stderr)  # noqa: T201 - a person reads it

    def read(self) -> Scalars:
        """Return the numbers of dropped lines."""
        return {definitions.LOG_LINES_DROPPED: {(each.name,): each.num_dropped_lines for each in self._streams}}

    def finish(self) -> None:
        """Write the waiting lines, in `FINISH_SECONDS` at most."""
        deadline = monotonic() + FINISH_SECONDS
        for stream in self._streams:
            stream.finish(deadline)


def _log_crashes() -> None:
    """Log what Python would write to standard error as a traceback in plain text."""

    def crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            logger.critical("Crashed", exc_info=(kind, error, trace))

    def thread_crashed(crash: threading.ExceptHookArgs) -> None:
        error = crash.exc_value
        if error is not None:
            name = crash.thread.name if crash.thread is not None else ""
            logger.error("ThreadCrashed thread=%r", name, exc_info=(crash.exc_type, error, crash.exc_traceback))

    def ignored(failure: sys.UnraisableHookArgs) -> None:
        error = failure.exc_value
        if error is not None:
            facts = (failure.exc_type, error, failure.exc_traceback)
            logger.error("ErrorIgnored object=%r", failure.object, exc_info=facts)

    sys.excepthook, threading.excepthook, sys.unraisablehook = crashed, thread_crashed, ignored


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
