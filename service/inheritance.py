"""What a starting depot inherits: the memory of the depot that it replaces, or that systemd has kept for it."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import MutableMapping

from kernels.host.streaming_copy import built_library
from kvdepot.version import __version__
from service.process.systemd import take_stored
from service.process.takeover.lines import socket_beside
from service.process.takeover.successor import CannotTakeOver, NobodyListens, take_over
from service.settings import Settings

logger = logging.getLogger(__name__)

STORED_NAME = "kvdepot-l1"
"""The name under which systemd keeps L1's memory."""

MORE_SECONDS = 2.0  # than the drain may take


def inherited_memory(settings: Settings, environment: MutableMapping[str, str], *, takes_over: bool) -> int | None:
    """Return a descriptor of L1's memory. None: there is none to inherit. `environment` loses systemd's variables.

    With `takes_over`, the depot that listens at the first unix address of the settings drains and ends. If no depot
    listens there, nothing is inherited from one.

    Raises: CannotTakeOver: the other depot serves on.
    """
    stored = take_stored(environment, STORED_NAME)
    if takes_over:
        fd = _taken_over(settings)
        if fd is not None:
            for each in stored:
                os.close(each)
            return fd
    for each in stored[1:]:
        os.close(each)
    return stored[0] if stored else None


def _taken_over(settings: Settings) -> int | None:
    path = socket_beside(settings.listen)
    if path is None:
        raise CannotTakeOver("a takeover needs a unix address in --listen, which is that of the running depot")
    try:
        built_library()  # now, because calls wait from the drain on
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("no compiled copy: %s", error)
    try:
        taken = take_over(
            path,
            settings.drain_timeout + MORE_SECONDS,
            software_version=__version__,
            report=lambda text: logger.info("the running depot: %s", text),
        )
    except NobodyListens as error:
        logger.info("nothing is taken over: %s", error)
        return None
    logger.info("took over the memory of a depot, which has ended: %s", taken.facts)
    return taken.fd
