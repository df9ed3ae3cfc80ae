"""Probes the addresses of KV events: whether the depot can bind them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from service.doctor.facts import BindError
from service.kv_events.setup import MISSING_PACKAGE
from service.settings import Settings

_IPC = "ipc://"


def bind_errors(settings: Settings) -> tuple[BindError, ...]:
    """Return what is wrong with the addresses of KV events. Without the packages for them, nothing is known."""
    if MISSING_PACKAGE is not None:
        return ()
    addresses = {"kv_events": settings.kv_events, "kv_events_replay": settings.kv_events_replay}
    numbers = {name: _errno(address) for name, address in addresses.items() if address}
    return tuple(
        BindError(setting=name, address=addresses[name], error=_text(number), is_in_use=number == errno.EADDRINUSE)
        for name, number in numbers.items()
        if number
    )


def _errno(address: str) -> int:
    """Return the number of the error with which an address can't be bound, 0 without one."""
    if not address.startswith(_IPC):
        return _errno_of_bind(address)
    # To bind it would take the file away from a depot that serves there.
    folder = Path(address.removeprefix(_IPC)).parent
    if not folder.is_dir():
        return errno.ENOENT
    return 0 if os.access(folder, os.W_OK | os.X_OK) else errno.EACCES


def _errno_of_bind(address: str) -> int:
    """Bind an address for a moment."""
    import zmq  # a depot without KV events may lack it

    with zmq.Context() as context, context.socket(zmq.PUB) as probe:
        probe.setsockopt(zmq.LINGER, 0)
        probe.setsockopt(zmq.IPV6, int("[" in address))
        try:
            probe.bind(address)
        except zmq.ZMQError as error:
            return error.errno or errno.EIO
    return 0


def _text(number: int) -> str:
    import zmq  # it has numbers of its own

    return zmq.strerror(number)
