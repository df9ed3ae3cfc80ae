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
    errors = {name: _error(address) for name, address in addresses.items() if address}
    return tuple(
        BindError(setting=name, address=addresses[name], error=text, is_in_use=number == errno.EADDRINUSE)
        for name, (number, text) in errors.items()
        if number
    )


def _error(address: str) -> tuple[int, str]:
    """Return why an address can't be bound, as a number and a text; 0 and no text: it can be."""
    if not address.startswith(_IPC):
        from telemetry.kv_events.probe import bind_error  # a depot without KV events may lack its package

        return bind_error(address)
    folder = Path(address.removeprefix(_IPC)).parent
    number = 0 if os.access(folder, os.W_OK | os.X_OK) else errno.EACCES
    if not folder.is_dir():
        number = errno.ENOENT
    return number, os.strerror(number) if number else ""
