"""The messages of SetLogLevel: checked, and made of the process's levels."""

from __future__ import annotations

from kvdepot.v1 import admin_pb2
from service.errors import invalid
from service.process.log_levels import LEVELS, LogLevels, UnknownLogger
from service.rpc import encode
from service.rpc.violations import Violations

MAX_SECONDS = 7 * 86_400
MAX_LOGGER_BYTES = 512
_LEVELS = {each: admin_pb2.LogLevel.Value(f"LOG_LEVEL_{each.upper()}") for each in LEVELS}
_NAMES = {number: level for level, number in _LEVELS.items()}


def set_log_level(levels: LogLevels, request: admin_pb2.SetLogLevelRequest) -> None:
    """Do what a request says.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_text("logger", request.logger, max_bytes=MAX_LOGGER_BYTES, required=False)
    if request.level not in (admin_pb2.LOG_LEVEL_UNSPECIFIED, *_NAMES):
        wrong.add("level", f"is {request.level}, not one of LogLevel's")
    seconds = None
    if request.HasField("duration"):
        seconds = request.duration.seconds + request.duration.nanos / 1e9
        if not 0 < seconds <= MAX_SECONDS:
            wrong.add("duration", f"is {seconds:g} s, not above 0 and at most {MAX_SECONDS} s")
        elif request.level == admin_pb2.LOG_LEVEL_UNSPECIFIED:
            wrong.add("duration", "needs a level")
    wrong.raise_any()
    try:
        if request.level == admin_pb2.LOG_LEVEL_UNSPECIFIED:
            levels.restore(request.logger)
        else:
            levels.set(request.logger, _NAMES[request.level], seconds)
    except UnknownLogger as error:
        raise invalid("logger", str(error)) from error


def logger_levels(levels: LogLevels) -> list[admin_pb2.LoggerLevel]:
    """Return the levels as messages."""
    return [
        admin_pb2.LoggerLevel(
            logger=each.logger,
            level=_LEVELS[each.level],
            expire_time=encode.timestamp(each.expire_time) if each.expire_time is not None else None,
        )
        for each in levels.levels()
    ]
