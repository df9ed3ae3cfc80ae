"""The recorder that the settings ask for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from service.load_settings import BadSettings
from service.recording.recorder import Recorder
from service.recording.trace_file import CannotRecord
from service.settings import Settings
from service.units import format_size
from telemetry.events import Publisher

logger = logging.getLogger(__name__)


def check_recording(settings: Settings) -> None:
    """Check what the file of a recording needs, without touching it: a takeover must not end in a depot without one.

    Raises: BadSettings.
    """
    if not settings.record_trace:
        return
    path = Path(settings.record_trace).absolute()
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise BadSettings(f"record_trace: {path}: is not a file")
    if not path.parent.is_dir():
        raise BadSettings(f"record_trace: {path.parent}: is not a folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadSettings(f"record_trace: {path.parent}: no file can be made in it")


def open_recorder(settings: Settings, bus: Publisher | None) -> Recorder | None:
    """Return the recorder, with its file open. None: nothing is recorded.

    Raises: BadSettings.
    """
    if not settings.record_trace:
        return None
    try:
        recorder = Recorder(Path(settings.record_trace), settings.record_trace_size, bus=bus)
    except CannotRecord as error:
        raise BadSettings(f"record_trace: {error}") from error
    logger.info("records requests in %s, of %s at most", recorder.path, format_size(settings.record_trace_size))
    return recorder
