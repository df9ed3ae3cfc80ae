"""The process of a depot: serves until a signal or until a successor has the memory, and then drains."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable

from service.inheritance import STORED_NAME
from service.process.garbage import freeze_what_stays
from service.process.heap import keep_freed_memory
from service.process.last_resort import LastResort
from service.process.systemd import Systemd
from service.process.takeover.lines import socket_beside
from service.process.takeover.listener import TakeoverListener
from service.process.takeover.socket_file import CannotOfferTakeover
from service.server import Server
from service.settings import Settings
from service.takeover import HandingOver
from telemetry.metrics.snapshot import Scalars

logger = logging.getLogger(__name__)

END_SECONDS = 8.0  # for all that follows the drain; supervisors of the process usually wait for 10
EXIT_SECONDS = 3.0
GIL_SWITCH_SECONDS = 0.0005


async def serve(
    settings: Settings,
    ready: Callable[[Server], None],
    gauges: Iterable[Callable[[], Scalars]] = (),
    *,
    inherited_fd: int | None = None,
    systemd: Systemd | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until another depot takes over, and drain. A second signal ends the process.

    Even if something hangs, the process ends `END_SECONDS` after the drain timeout, or `EXIT_SECONDS` after the return.
    `inherited_fd` is L1's memory of an earlier process.

    Raises: MemoryUnavailable, L1FileUnusable, CannotListen, BadSettings.
    """
    systemd = systemd or Systemd(None)
    # A copying thread needs the GIL for a moment between two pieces. By default it waits up to 5 ms for it.
    sys.setswitchinterval(GIL_SWITCH_SECONDS)
    keep_freed_memory()
    _, max_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))  # an attached region keeps one open

    server = Server(settings, gauges, inherited_fd=inherited_fd)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    last_resort = LastResort()

    def end() -> None:
        last_resort.end_within(settings.drain_timeout + END_SECONDS, exit_code=1)
        systemd.stopping()
        stop.set()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        end()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with asyncio.TaskGroup() as tasks, server.running():
        freeze_what_stays()
        logger.info("moves bytes by %s", server.depots.backend.name)
        if server.cuda_error:
            logger.info("no CUDA: %s", server.cuda_error)
        takeover = _listener(settings, HandingOver(server, end))
        offering = tasks.create_task(takeover.run(), name="takeover") if takeover is not None else None
        if not settings.l1_file:  # a file outlives the process by itself
            systemd.remove_stored(STORED_NAME)  # systemd would not keep a second one
            systemd.store(server.memory.fd, STORED_NAME)
        ready(server)
        systemd.ready(f"serves on {', '.join(server.addresses)}")
        await stop.wait()
        if offering is not None and not server.memory.is_handed_over:
            offering.cancel()
    last_resort.end_within(EXIT_SECONDS, exit_code=0)  # only a thread that hangs can be left


def _listener(settings: Settings, predecessor: HandingOver) -> TakeoverListener | None:
    """Return the listener for a successor. None: there is no unix address, or its socket can't be made."""
    path = socket_beside(settings.listen)
    if path is None:
        return None
    try:
        return TakeoverListener(path, predecessor)
    except CannotOfferTakeover as error:
        logger.warning("no takeover is offered: %s", error)
        return None
