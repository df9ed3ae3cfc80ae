"""Engines with known bytes in their blocks, attached to a real depot."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from kvdepot import AsyncAttachment, AsyncDepotClient, DepotError, KvShape, token_prefix
from kvdepot.errors import depot_error
from kvdepot.v1.cache_pb2 import (
    LookupResponse,
    RetrieveResponse,
    StoreInlineHeader,
    StoreInlineRequest,
    StoreInlineResponse,
    StoreResponse,
)
from kvdepot.v1.cache_pb2_grpc import CacheServiceStub
from service.depot.instances import Attachment
from service.server import Server
from tests.e2e.throttle import Throttle
from tests.fakes.paged import Group, Kv, SharedPagedBuffer, Tables, first_tokens, random_kv
from tests.fakes.waiting import eventually

if TYPE_CHECKING:
    from kvdepot.v1.cache_pb2_grpc import CacheServiceAsyncStub

SMALL = Group(
    "NL_X_TWO_NB_BS_NH_HS",
    KvShape(num_layers=2, num_blocks=64, block_size=4, num_heads=3, head_size=8, dtype="uint16"),
)
"""A chunk of 16 tokens has 3,072 bytes."""

SLOW_TOKENS = 32_768

SLOW = 4 * (
    Group(
        "NL_X_TWO_NB_NH_BS_HS",
        KvShape(num_layers=12, num_blocks=SLOW_TOKENS, block_size=1, num_heads=3, head_size=1, dtype="uint8"),
    ),
)
"""Blocks of one token: 9 MiB in 8,192 pieces, which a throttle keeps moving for as long as a test likes."""

FAST = 4 * (Group("NL_X_TWO_NB_BS_NH_HS", replace(SLOW[0].shape, num_blocks=SLOW_TOKENS // 16, block_size=16)),)
"""The same model in another layout."""


def prompt(num_tokens: int, seed: int = 1) -> list[int]:
    """Return token ids; a longer prompt of the same seed goes on where a shorter one ended."""
    tokens: list[int] = np.random.default_rng(seed).integers(0, 1 << 32, num_tokens, np.uint32).tolist()
    return tokens


@contextmanager
def refused(status: str, reason: str) -> Iterator[None]:
    """Check that the block's call is refused with this status and this reason."""
    with pytest.raises(DepotError) as failure:
        yield
    assert (failure.value.code.name, failure.value.reason) == (status, reason), str(failure.value)


def listening_pid(address: str) -> int:
    """Return the process behind a unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address.removeprefix("unix:"))
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


class InlineStore:
    """An inline store whose messages a test sends one by one."""

    def __init__(self, stub: CacheServiceAsyncStub, *, timeout_seconds: float = 30.0) -> None:
        self._call = stub.StoreInline(timeout=timeout_seconds)

    async def header(self, engine: Engine, session_id: str, token_ids: Sequence[int], **fields: Any) -> None:
        header = StoreInlineHeader(
            instance_id=engine.attachment.instance_id,
            rank=engine.attachment.rank,
            session_id=session_id,
            prefix=token_prefix(token_ids),
            **fields,
        )
        await self.send(StoreInlineRequest(header=header))

    async def data(self, data: bytes) -> None:
        await self.send(StoreInlineRequest(data=data))

    async def trickle(self) -> None:
        """Send a byte at intervals, for ever."""
        while True:
            await self.data(b"x")
            await asyncio.sleep(0.05)

    async def send(self, message: StoreInlineRequest) -> None:
        await self._call.write(message)

    async def complete(self) -> StoreInlineResponse:
        """End the stream and return the answer.

        Raises: DepotError.
        """
        await self._call.done_writing()
        return await self.answer()

    async def answer(self) -> StoreInlineResponse:
        """Return the answer to an open stream. No message may be on its way.

        Raises: DepotError.
        """
        try:
            return await self._call
        except grpc.aio.AioRpcError as error:
            raise depot_error(error) from error

    def cancel(self) -> None:
        self._call.cancel()


def calls_running() -> set[asyncio.Task[Any]]:
    """Return all tasks but those in which gRPC waits for the next call, or an attachment for its end."""
    permanent = ("_request_call", "_request_registered_call", "coro=<Event.wait()")
    return {task for task in asyncio.all_tasks() if not any(each in repr(task) for each in permanent)}


class Engine:
    """One rank of an instance: its paged buffer, and its attachment."""

    def __init__(self, buffer: SharedPagedBuffer, attachment: AsyncAttachment) -> None:
        self.buffer = buffer
        self.attachment = attachment
        self.groups = buffer.groups
        self._rng = np.random.default_rng(7)

    def tables(self, num_tokens: int) -> Tables:
        """Return blocks for a prompt, anywhere and in any order."""
        return [
            self._rng.permutation(group.shape.num_blocks)[: -(-num_tokens // group.shape.block_size)]
            for group in self.groups
        ]

    def kv(self, num_tokens: int, seed: int) -> Kv:
        """Return the KV that belongs to a prompt of this seed."""
        return random_kv(self.groups, num_tokens, seed)

    def put(self, kv: Kv) -> Tables:
        """Put KV into some blocks, as computing it would."""
        tables = self.tables(kv[0].shape[2])
        self.buffer.write(tables, kv)
        return tables

    async def store(self, session_id: str, prefix: Any, kv: Kv, *, start_token: int = 0) -> StoreResponse:
        """Put the KV from `start_token` on into some blocks, and store these."""
        tables = self.put([content[:, :, start_token:] for content in kv])
        return await self.attachment.store(session_id, prefix, tables, start_token=start_token)

    async def lookup(self, session_id: str, prefix: Any, **options: Any) -> LookupResponse:
        return await self.attachment.lookup(session_id, prefix, **options)

    async def retrieve(
        self, session_id: str, lease: Any, num_tokens: int, *, skip_tokens: int = 0, tables: Tables | None = None
    ) -> RetrieveResponse:
        """Retrieve into some blocks, without a check of their content."""
        tables = self.tables(num_tokens) if tables is None else tables
        return await self.attachment.retrieve(session_id, lease, tables, skip_tokens=skip_tokens)

    async def retrieve_exactly(self, session_id: str, lease: Any, kv: Kv, *, skip_tokens: int = 0) -> RetrieveResponse:
        """Retrieve into some blocks: the KV from `skip_tokens` on is in them then, and no other byte has changed."""
        num_tokens = kv[0].shape[2]
        tables = self.tables(num_tokens)
        self.buffer.fill(seed=99)
        expected = self.buffer.twin()
        expected.write(tables, kv, skip_tokens)
        answer = await self.retrieve(session_id, lease, num_tokens, skip_tokens=skip_tokens, tables=tables)
        assert not self.buffer.differences(expected)
        return answer

    async def holds(self, session_id: str, prefix: Any, kv: Kv) -> int:
        """Return how many tokens of the prompt the depot has, and check their bytes."""
        found = await self.lookup(session_id, prefix)
        if found.HasField("lease"):
            await self.retrieve_exactly(session_id, found.lease, first_tokens(kv, found.matched_tokens))
            await self.attachment.release_lease(found.lease)
        return found.matched_tokens

    async def end_session(self, session_id: str) -> None:
        await self.attachment.end_session(session_id)

    async def die(self) -> None:
        """End the stream as the kernel does for a process that dies: the depot gets no DetachInstance."""
        self.attachment._stream.cancel()
        await self.attachment._reader.finish()

    async def close(self) -> None:
        await self.attachment.close()
        self.buffer.close()


async def attach(
    client: AsyncDepotClient,
    *groups: Group,
    instance_id: str,
    model_name: str = "model",
    world_size: int = 1,
    rank: int = 0,
    prefill_tokens_per_second: float | None = None,
    model_revision: str = "",
    block_hash_seed: str = "",
    chunk_size: int = 0,
    **memory: Any,
) -> Engine:
    """Attach an engine with a buffer of these groups; `memory` says how it is shared."""
    buffer = SharedPagedBuffer(groups, **memory)
    try:
        attachment = await client.attach(
            instance_id=instance_id,
            model_name=model_name,
            groups=buffer.described(),
            regions=buffer.shared.regions,
            world_size=world_size,
            rank=rank,
            prefill_tokens_per_second=prefill_tokens_per_second,
            model_revision=model_revision,
            block_hash_seed=block_hash_seed,
            chunk_size=chunk_size,
        )
    except BaseException:
        buffer.close()
        raise
    return Engine(buffer, attachment)


class Site:
    """A depot in this process, a client of it, and the engines that were attached through it."""

    def __init__(
        self, server: Server, client: AsyncDepotClient, stub: CacheServiceAsyncStub, throttle: Throttle | None
    ) -> None:
        self.throttle = throttle or Throttle()
        self.server = server
        self.depot = server.depot
        self.client = client
        self.stub = stub
        self.numbers = itertools.count(1)
        self._engines = AsyncExitStack()

    async def attach(
        self, *groups: Group, instance_id: str = "", client: AsyncDepotClient | None = None, **options: Any
    ) -> Engine:
        """Attach an engine until the test ends, under an instance id of its own if none is given."""
        instance_id = instance_id or f"engine-{next(self.numbers)}"
        engine = await attach(client or self.client, *(groups or [SMALL]), instance_id=instance_id, **options)
        self._engines.push_async_callback(engine.close)
        return engine

    def attachment(self, engine: Engine) -> Attachment:
        """Return the depot's record of an engine."""
        found = self.depot.instances.find(engine.attachment.instance_id, engine.attachment.rank)
        assert found is not None
        return found

    async def begun(self, engine: Engine, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Return a call that moves the engine's bytes, slowly until the throttle is released."""
        self.throttle.slow_down()
        task = asyncio.create_task(call)
        await eventually(lambda: self.is_moving(engine))
        return task

    def num_being_stored(self) -> int:
        """Return how many chunks are being stored. More are protected: a store pins those before its own."""
        return sum(chunk.pending_write is not None for chunk in self.depot.index.chunks())

    def is_moving(self, engine: Engine) -> bool:
        """Return whether a transfer of the engine runs."""
        return bool(self.attachment(engine).transfers)

    def let_leases_expire(self) -> None:
        """End expired leases, as the depot's timer does."""
        for lease in self.depot.leases.live():
            lease.expire_monotonic = time.monotonic()
        self.depot.lifetimes.expire()

    async def assert_comes_to_rest(self) -> None:
        """Wait until nothing is reserved, pinned, leased or running; check the invariants."""
        depot = self.depot
        await eventually(lambda: not any(session.num_running for session in depot.sessions.newest_first()))
        # A call gives its chunks back in slices. The last slice may come after the call has ended.
        await eventually(lambda: depot.index.num_protected == 0)
        depot.index.check()
        assert len(depot.leases) == 0, "a lease is left"
        assert not any(attached.transfers for instance in depot.instances for attached in instance.ranks.values())

    async def close(self) -> None:
        """Detach the engines: all that is left then are chunks that can be evicted."""
        self.throttle.release()
        await self._engines.aclose()
        await eventually(lambda: len(self.depot.instances) == 0)
        assert len(self.depot.sessions) == 0
        await self.assert_comes_to_rest()


@asynccontextmanager
async def site(server: Server, address: str = "", throttle: Throttle | None = None) -> AsyncIterator[Site]:
    """Open clients of a server while the block runs."""
    address = address or server.addresses[0]
    async with AsyncDepotClient(address) as client, grpc.aio.insecure_channel(address) as channel:
        opened = Site(server, client, CacheServiceStub(channel), throttle)
        try:
            yield opened
        finally:
            await opened.close()
