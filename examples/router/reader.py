"""A thread that reads the KV events of several depots, and hands over what changed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self

import zmq

from examples.router.connection import Connection, Endpoints, Patience
from examples.router.events import BadBatch, Event, decode_batch
from examples.router.follower import Batch

MAX_CHANGES = 256
"""The changes that may wait. Then the sockets fill, batches are lost, and a replay brings them."""
_POLL_MILLISECONDS = 50
_PATIENCE = Patience()


class Condition(Enum):
    """What a change means for the depot and for all that it told before."""

    GOES_ON = auto()
    BEGINS_ANEW = auto()
    """Forget what it told. It tells it again."""
    ANSWERS = auto()
    """It can get requests."""
    IS_GONE = auto()
    """Forget what it told, and send it no requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """News of a depot. `events` are about blocks of `model`."""

    depot: int
    condition: Condition = Condition.GOES_ON
    model: str = ""
    events: Sequence[Event] = field(default=(), repr=False)


class Reader:
    """Reads depots, numbered from 0, and puts what it reads into `changes`. Use it in a `with`.

    `num_bad_batches` counts batches that could not be decoded. They are left out.
    """

    def __init__(self, depots: Sequence[Endpoints], patience: Patience = _PATIENCE) -> None:
        self.changes: queue.Queue[Change] = queue.Queue(MAX_CHANGES)
        self.num_bad_batches = 0
        self._depots = depots
        self._patience = patience
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_closing.set()
        self._thread.join()

    def _run(self) -> None:
        context = zmq.Context()
        try:
            connections = [Connection(context, endpoints, self._patience) for endpoints in self._depots]
            while not self._is_closing.is_set():
                sockets = [socket for connection in connections for socket in connection.sockets]
                zmq.zmq_poll([(socket, zmq.POLLIN) for socket in sockets], _POLL_MILLISECONDS)
                for depot, connection in enumerate(connections):
                    self._read(depot, connection)
        finally:
            context.destroy(linger=0)
            for depot in range(len(self._depots)):  # if it failed, what it read gets old
                self._put(Change(depot=depot, condition=Condition.IS_GONE))

    def _read(self, depot: int, connection: Connection) -> None:
        answered = connection.answers
        for step in connection.read():
            if isinstance(step, Batch):
                self._take(depot, step)
            else:
                self._put(Change(depot=depot, condition=Condition.BEGINS_ANEW))
        if connection.answers != answered:
            self._put(Change(depot=depot, condition=Condition.IS_GONE if answered else Condition.ANSWERS))

    def _take(self, depot: int, batch: Batch) -> None:
        try:
            events = decode_batch(batch.payload)
        except BadBatch:
            self.num_bad_batches += 1
            return
        model = batch.topic.decode(errors="replace").split("@", 2)[-1]  # kv@POD@MODEL
        self._put(Change(depot=depot, model=model, events=events))

    def _put(self, change: Change) -> None:
        is_put = False
        while not is_put and not self._is_closing.is_set():
            with suppress(queue.Full):
                self.changes.put(change, timeout=_POLL_MILLISECONDS / 1000)
                is_put = True
