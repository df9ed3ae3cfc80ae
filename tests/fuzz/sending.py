"""One call as a client makes it: patient, hasty, cancelled, half read, left open."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
from grpc._cython.cygrpc import ExecuteBatchError

from tests.fuzz.answers import Answer, answer_of
from tests.fuzz.rpcs import Rpc

TIMEOUT_SECONDS = 20.0
"""After this a call that is not answered hangs. It is longer than every wait that the depot is set to."""

HUGE_METADATA_BYTES = 7_000
"""gRPC takes 8 KiB of metadata, with its own."""

_TRACES = (
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "00-00000000000000000000000000000000-0000000000000000-00",
    "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-zz",
    "",
    "-",
    "0" * 300,
    "%s{0}$(id)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a client makes a call.

    `wrong_arity` sends as many messages as there are on a method that takes one. `finishes_writing` is false for a
    stream of requests that is left open. Of answers so many are read, if they come in time; after that the call is
    cancelled or left open.
    """

    deadline_seconds: float | None
    cancel_after_seconds: float | None
    metadata: Sequence[tuple[str, str | bytes]]
    wrong_arity: bool
    finishes_writing: bool
    reads: int | None
    read_seconds: float
    stays_open: bool

    def __str__(self) -> str:
        said = [f"deadline {self.deadline_seconds} s"] if self.deadline_seconds is not None else ["no deadline"]
        if self.cancel_after_seconds is not None:
            said.append(f"cancelled after {self.cancel_after_seconds * 1000:.2f} ms")
        if self.reads is not None:
            said.append(f"at most {self.reads} answers read, {'left open' if self.stays_open else 'cancelled'} then")
        said += ["with the wrong number of messages"] * self.wrong_arity
        said += ["without the end of the stream"] * (not self.finishes_writing)
        return ", ".join((*said, *(f"{key}: {value[:80]!r}" for key, value in self.metadata)))

    @property
    def has_huge_metadata(self) -> bool:
        """Return whether gRPC refuses it."""
        return sum(len(key) + len(value) + 32 for key, value in self.metadata) > HUGE_METADATA_BYTES


PLAIN = Manner(
    deadline_seconds=TIMEOUT_SECONDS,
    cancel_after_seconds=None,
    metadata=(),
    wrong_arity=False,
    finishes_writing=True,
    reads=None,
    read_seconds=TIMEOUT_SECONDS,
    stays_open=False,
)


def manner(rpc: Rpc, random: Random) -> Manner:
    """Return how to make a call; mostly to its end, because a call that is cut short shows less."""
    long_lived = rpc.streams_responses and rpc.name != "RetrieveInline"
    deadline = random.choice((*[None] * 6, *[30.0] * 12, 1e-6, random.choice((0.0005, 0.002, 0.01, 0.05))))
    moments = (*[None] * 27, 0.0, random.random() * 0.003, random.random() * 0.03)
    reads = random.choice((0, 1, 1, 3) if long_lived else (1, *[None] * 9) if rpc.streams_responses else (None,))
    return Manner(
        deadline_seconds=deadline,
        cancel_after_seconds=random.choice(moments),
        metadata=_metadata(random),
        wrong_arity=not rpc.streams_requests and random.random() < 0.02,
        finishes_writing=not rpc.streams_requests or random.random() < 0.93,
        reads=reads,
        read_seconds=random.choice((0.01, 0.05, 1.5 if rpc.name == "AttachInstance" else 0.05)),
        stays_open=rpc.streams_responses and random.random() < 0.5,
    )


def _metadata(random: Random) -> Sequence[tuple[str, str | bytes]]:
    if random.random() > 0.15:
        return ()
    kinds: Sequence[tuple[str, str | bytes]] = (
        ("traceparent", random.choice(_TRACES)),
        ("tracestate", "x=" + "y" * random.choice((1, 600))),
        ("baggage", ",".join(f"k{number}=%00{number}" for number in range(random.choice((1, 200))))),
        ("authorization", random.choice(("", "Bearer", "Bearer " + "x" * 4000, "Basic Og=="))),
        ("x-fuzz-bin", random.randbytes(random.choice((0, 1, 3000)))),
        ("traceparent-bin", random.randbytes(16)),
        ("x-huge", "x" * random.choice((4_000, 32_000))),
        ("grpc-previous-rpc-attempts", "9999"),
        ("accept-encoding", "nonsense"),
    )
    return random.choices(kinds, k=random.choice((1, 1, 2, 4)))


_HAS_ENDED = (asyncio.InvalidStateError, grpc.aio.UsageError, ExecuteBatchError)


class Hangs(Exception):
    """A call that was not answered."""


class Client:
    """A connection, its streams that were left open, and how it makes a call. One loop owns it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = self._connect()
        self.open_calls: list[Any] = []

    def __repr__(self) -> str:
        return f"<Client of {self.address}, {len(self.open_calls)} open calls>"

    def _connect(self) -> grpc.aio.Channel:
        # A connection of its own: gRPC shares them among channels of one address.
        return grpc.aio.insecure_channel(
            self.address,
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)],
        )

    async def call(self, rpc: Rpc, wires: Sequence[bytes], how: Manner = PLAIN) -> Answer:
        """Make the call and read its answer.

        Raises: Hangs.
        """
        kind = "stream_stream" if how.wrong_arity else rpc.kind
        method = getattr(self._channel, kind)(
            rpc.path, request_serializer=None, response_deserializer=rpc.response.FromString
        )
        given = wires[0] if kind.startswith("unary") else None
        call = (
            method(given, timeout=how.deadline_seconds, metadata=how.metadata)
            if given is not None
            else method(timeout=how.deadline_seconds, metadata=how.metadata)
        )
        answer = Answer()
        task = asyncio.ensure_future(self._through(call, kind, wires if given is None else (), how, answer))
        timeout_seconds = TIMEOUT_SECONDS if how.cancel_after_seconds is None else how.cancel_after_seconds
        done, _ = await asyncio.wait([task], timeout=timeout_seconds)
        if not done:
            call.cancel()
            # A call that is cancelled before it has begun leaves grpc.aio's own writes waiting for ever.
            task.cancel()
            await asyncio.wait([task])
            if how.cancel_after_seconds is None:
                raise Hangs(f"no answer in {TIMEOUT_SECONDS:g} s")
        if task.cancelled():  # the call was cancelled here
            return Answer(code="CANCELLED", messages=answer.messages)
        error = task.exception()
        if isinstance(error, grpc.aio.AioRpcError):
            failed = answer_of(error)
            failed.messages = answer.messages
            return failed
        if error is not None:
            raise error
        return answer

    async def _through(self, call: Any, kind: str, wires: Sequence[bytes], how: Manner, answer: Answer) -> None:
        if kind.startswith("stream"):
            try:
                for wire in wires:
                    await call.write(wire)
                if how.finishes_writing:
                    await call.done_writing()
                elif not how.stays_open:
                    await asyncio.sleep(0.005)
                    call.cancel()
            except _HAS_ENDED:
                pass  # what it says is read below
        if kind.endswith("unary"):
            answer.messages.append(await call)
            return
        while how.reads is None or len(answer.messages) < how.reads:
            message = await self._read(call, how)
            if message is None:
                break
            if message is grpc.aio.EOF:
                await self._raise_if_failed(call)
                return
            answer.messages.append(message)
        if how.stays_open and not call.done():
            self.open_calls.append(call)
        else:
            call.cancel()

    async def _read(self, call: Any, how: Manner) -> Any:
        """Return the next answer; None if it does not come in time, which ends the call."""
        if how.reads is None:
            return await call.read()
        reading = asyncio.ensure_future(call.read())
        reading.add_done_callback(lambda read: read.cancelled() or read.exception())  # else asyncio logs it
        done, _ = await asyncio.wait([reading], timeout=how.read_seconds)
        if not done:
            call.cancel()
            return None
        return reading.result()

    async def _raise_if_failed(self, call: Any) -> None:
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            )

    def let_go(self, random: Random, most: int) -> None:
        """Cancel random open calls until at most so many are left."""
        self.open_calls = [call for call in self.open_calls if not call.done()]
        while len(self.open_calls) > most:
            self.open_calls.pop(random.randrange(len(self.open_calls))).cancel()

    async def reconnect(self) -> None:
        """Break the connection with all calls on it, and make another."""
        await self.close()
        self._channel = self._connect()

    async def close(self) -> None:
        """Break the connection with all calls on it."""
        self.open_calls.clear()
        await self._channel.close()
