"""The recorder that the settings ask for."""

from __future__ import annotations

import logging
from pathlib import Path

from service.load_settings import BadSettings
from service.recording.recorder import Recorder
from service.recording.trace_file import CannotRecord
from service.settings import Settings
from service.units import format_size
from telemetry.events import Publisher

logger = logging.getLogger(__name__)


def open_recorder(settings: Settings, bus: Publisher | None) -> Recorder | None:
    """Return the recorder, with its file open. None: nothing is recorded.

    Raises: BadSettings.
    """
    if not settings.record_trace:
        return None
    try:
        recorder = Recorder(
            Path(settings.record_trace), settings.record_trace_size, block_tokens=settings.chunk_size, bus=bus
        )
    except CannotRecord as error:
        raise BadSettings(f"record_trace: {error}") from error
    logger.info("records requests in %s, of %s at most", recorder.path, format_size(settings.record_trace_size))
    return recorder
