"""The ZeroMQ sockets of KV events: one sends to all readers, one answers those that ask for batches again."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

import zmq

from telemetry.kv_events.ring import Ring, Sent
from telemetry.kv_events.wire import END_OF_REPLAY
from telemetry.thread import in_daemon_thread

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 4_096  # of a subscription or a request
NUMBER_BYTES = 8
MAX_WAITING_REQUESTS = 100
REPLAY_SECONDS = 5.0  # for one request: others wait meanwhile
LINGER_SECONDS = 1.0
CLOSE_SECONDS = 2.0
BATCHES_PER_STEP = 16
_STOP_ADDRESS = "inproc://stop"


class CannotPublish(Exception):
    """An address can't be bound."""


class Sockets:
    """Sends batches and keeps them in a ring. `address` and `replay_address` have the chosen ports.

    A reader that has `max_waiting_batches` waiting loses batches. `on_reader` is called on the event loop when a reader
    subscribes, or asks for more than the ring has. `num_subscriptions` counts those of connected readers. All methods
    are for the event loop. The constructor binds.

    Raises: CannotPublish.
    """

    def __init__(self, address: str, replay_address: str, ring: Ring, *, max_waiting_batches: int) -> None:
        self.num_replays = Counter({"whole": 0, "too old": 0, "abandoned": 0})
        self.num_bad_requests = 0
        self.num_subscriptions = 0
        self._ring = ring
        self._on_reader: Callable[[], None] = lambda: None
        self._context = zmq.Context()
        self._stopping: zmq.Socket[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        try:
            # An XPUB socket is a PUB socket that says who subscribes.
            self._publisher, self.address = self._bind(zmq.XPUB, address, max_waiting_batches)
            self._publisher.setsockopt(zmq.XPUB_VERBOSER, 1)  # says it of each reader, and of its end
            self._router: zmq.Socket[bytes] | None = None
            self.replay_address = ""
            if replay_address:
                self._router, self.replay_address = self._bind(zmq.ROUTER, replay_address, max_waiting_batches)
                self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
                self._router.setsockopt(zmq.RCVHWM, MAX_WAITING_REQUESTS)
        except CannotPublish:
            self._context.destroy(linger=0)
            raise

    def __repr__(self) -> str:
        return f"<Sockets {self.address}, {self._ring!r}>"

    def start(self, on_reader: Callable[[], None]) -> None:
        """Take subscriptions and requests from here on."""
        self._on_reader = on_reader
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._publisher.FD, self._take_subscriptions)
        if self._router is not None:
            stopped = self._context.socket(zmq.PAIR)
            stopped.bind(_STOP_ADDRESS)
            self._stopping = self._context.socket(zmq.PAIR)
            self._stopping.connect(_STOP_ADDRESS)
            self._thread = threading.Thread(
                target=self._serve_replays, args=(self._router, stopped), name="kv-events-replay", daemon=True
            )
            self._thread.start()
        self._take_subscriptions()

    def send(self, topic: bytes, number: int, payload: bytes) -> None:
        """Send a batch to all readers. Never blocks."""
        self._publisher.send_multipart((topic, number.to_bytes(NUMBER_BYTES, "big"), payload), flags=zmq.NOBLOCK)
        self._ring.append(Sent(topic, number, payload))
        self._take_subscriptions()  # to send may use up the signal that one waits

    async def close(self) -> None:
        """Give readers `LINGER_SECONDS` to take what waits for them, and close."""
        if self._loop is not None:
            self._loop.remove_reader(self._publisher.FD)
        if self._stopping is not None:
            self._stopping.send(b"")
            self._stopping.close(linger=0)
        self._publisher.close(linger=int(LINGER_SECONDS * 1e3))
        if self._router is not None and self._thread is None:
            self._router.close(linger=0)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await in_daemon_thread(self._context.term, "close kv events")
        except TimeoutError:
            logger.warning("KvEventsAbandoned address=%r", self.address)

    def _bind(self, kind: int, address: str, max_waiting: int) -> tuple[zmq.Socket[bytes], str]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, max_waiting)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
        socket.setsockopt(zmq.LINGER, 0)
        if "[" in address:
            socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            raise CannotPublish(f"{address}: {zmq.strerror(error.errno or 0)}") from error
        bound = socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        return socket, bound.rstrip(b"\0").decode()

    def _take_subscriptions(self) -> None:
        has_subscribed = False
        while int(self._publisher.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            is_subscription = self._publisher.recv(zmq.NOBLOCK)[:1] == b"\x01"
            has_subscribed |= is_subscription
            # A reader may end a subscription that it does not have.
            self.num_subscriptions = max(0, self.num_subscriptions + (1 if is_subscription else -1))
        if has_subscribed:
            self._on_reader()

    def _serve_replays(self, router: zmq.Socket[bytes], stopped: zmq.Socket[bytes]) -> None:
        """Answer one request after the other. Runs in a thread, because it waits for readers."""
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(stopped, zmq.POLLIN)
        try:
            while stopped not in (ready := dict(poller.poll())):
                if router in ready:
                    self._answer(router, router.recv_multipart())
        except zmq.ContextTerminated:
            pass
        except Exception:
            logger.exception("KvEventsReplayFailed")
        finally:
            router.close(linger=0)
            stopped.close(linger=0)

    def _answer(self, router: zmq.Socket[bytes], request: list[bytes]) -> None:
        if len(request) != 3 or len(request[2]) != NUMBER_BYTES:
            self.num_bad_requests += 1
            return
        reader, _, first = request
        batches, is_whole = self._ring.since(int.from_bytes(first, "big"))
        if not is_whole and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_reader)
        deadline = time.monotonic() + REPLAY_SECONDS
        try:
            for number, sent in enumerate(batches):
                self._send_by(router, deadline, (reader, b"", sent.topic, _number(sent.number), sent.payload))
                if number % BATCHES_PER_STEP == 0:
                    time.sleep(0)  # the event loop has the interpreter
            self._send_by(router, deadline, (reader, b"", b"", END_OF_REPLAY, b""))
            self.num_replays["whole" if is_whole else "too old"] += 1
        except zmq.ZMQError:  # it reads too slowly, or is gone
            self.num_replays["abandoned"] += 1

    @staticmethod
    def _send_by(router: zmq.Socket[bytes], deadline: float, frames: tuple[bytes, ...]) -> None:
        router.setsockopt(zmq.SNDTIMEO, max(0, int((deadline - time.monotonic()) * 1e3)))
        router.send_multipart(frames)


def _number(number: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big")
