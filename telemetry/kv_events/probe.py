"""Tries whether an address of ZeroMQ can be bound."""

from __future__ import annotations

import errno

import zmq


def bind_error(address: str) -> tuple[int, str]:
    """Bind an address for a moment. Return the number and the text of the error; 0 and no text without one.

    To bind `ipc://` would take the file away from a process that serves there.
    """
    with zmq.Context() as context, context.socket(zmq.PUB) as probe:
        probe.setsockopt(zmq.LINGER, 0)
        probe.setsockopt(zmq.IPV6, int("[" in address))
        try:
            probe.bind(address)
        except zmq.ZMQError as error:
            number = error.errno or errno.EIO
            return number, zmq.strerror(number)
    return 0, ""
