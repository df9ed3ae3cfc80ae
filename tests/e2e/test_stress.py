"""Sixty-four engines at once on an L1 that is too small: each byte is right, and nothing is left when they are gone."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvdepot import AsyncAttachment, AsyncDepotClient, DepotError, KvShape, SharedBuffer, hash_prefix, token_prefix
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2
from service.l1.pool import Pool
from service.server import Server
from telemetry.delivery import Subscriber
from telemetry.events import Event

CHUNK_SIZE = 16
HASH_BLOCK_SIZE = 8
MAX_CHUNKS = 5
NUM_CLIENTS = 64
POISON = 0xEE
TIMEOUT_SECONDS = 60.0  # for an undisturbed call
# Reasons that a call may get because of other calls: a lease or a session that was ended, an engine that left.
DISTURBANCES = frozenset(
    {
        "ATTACHMENT_CLOSED",
        "CLIENT_CLOSED",
        "DETACHED",
        "INSTANCE_NOT_FOUND",
        "LEASE_EXPIRED",
        "LEASE_NOT_FOUND",
        "LEASE_RELEASED",
        "LEASE_REVOKED",
        "RANK_NOT_FOUND",
        "SESSION_NOT_FOUND",
    }
)
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that instances share chunks of, and the layouts that they choose from."""

    name: str
    layouts: tuple[layouts.Layout, ...]
    num_layers: int
    num_heads: int
    head_size: int
    world_size: int = 1
    num_prompts: int = 16  # that a buffer holds

    def shape(self, *, block_size: int, num_blocks: int) -> KvShape:
        return KvShape(
            num_layers=self.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_heads=self.num_heads,
            head_size=self.head_size,
            dtype="float32",
        )


HEADS = (layouts.NL_X_TWO_NB_BS_NH_HS, layouts.NB_NL_TWO_NH_BS_HS, layouts.VLLM_LBNHC, layouts.VLLM_LHBNC)
MODELS = (
    Model("heads", HEADS, num_layers=2, num_heads=2, head_size=8),
    Model("latent", (layouts.NL_X_NB_BS_HS,), num_layers=3, num_heads=1, head_size=24),
    Model("pair", HEADS, num_layers=2, num_heads=1, head_size=8, world_size=2),
    # Of small pieces, so that its transfers take long enough to be caught in the middle.
    Model("large", (layouts.NB_NL_TWO_NH_BS_HS,), num_layers=16, num_heads=64, head_size=4, num_prompts=4),
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A path in a small tree, so that prefixes are shared. Equal steps are equal tokens, wherever they are."""

    path: tuple[int, ...]
    num_tail_tokens: int
    salt: str
    hashed: bool

    @property
    def tokens(self) -> list[int]:
        steps = [100 * step + token for step in self.path for token in range(CHUNK_SIZE)]
        return steps + [7] * self.num_tail_tokens

    @property
    def num_tokens(self) -> int:
        return self.prefix_size(len(self.tokens))

    def prefix_size(self, num_tokens: int) -> int:
        return num_tokens // HASH_BLOCK_SIZE * HASH_BLOCK_SIZE if self.hashed else num_tokens

    def message(self) -> cache_pb2.Prefix:
        if not self.hashed:
            return token_prefix(self.tokens, cache_salt=self.salt)
        hashes, parent = [], b""
        for start in range(0, self.num_tokens, HASH_BLOCK_SIZE):
            parent = hashlib.sha256(parent + repr(self.tokens[start : start + HASH_BLOCK_SIZE]).encode()).digest()
            hashes.append(parent)
        return hash_prefix(hashes, HASH_BLOCK_SIZE, cache_salt=self.salt)


@lru_cache(maxsize=10_000)
def chunk_content(model: Model, rank: int, path: tuple[int, ...], salt: str, hashed: bool) -> Bytes:
    """The canonical bytes of the last chunk of a path, [planes, tokens, heads, head_bytes]: never those of another."""
    num_planes = model.num_layers * (1 if model.name == "latent" else 2)
    shape = (num_planes, CHUNK_SIZE, model.num_heads, model.head_size * 4)
    seed = repr((model.name, rank, path, salt, hashed)).encode()
    return np.frombuffer(hashlib.shake_128(seed).digest(int(np.prod(shape))), np.uint8).reshape(shape)


def content(model: Model, rank: int, prompt: Prompt, start: int, num_chunks: int) -> Bytes:
    """Return the bytes of several chunks, along their tokens."""
    chunks = [
        chunk_content(model, rank, prompt.path[: end + 1], prompt.salt, prompt.hashed)
        for end in range(start, start + num_chunks)
    ]
    return np.concatenate(chunks, axis=1) if chunks else chunk_content(model, rank, (0,), "", False)[:, :0]


class Memory:
    """The paged buffer of one rank."""

    def __init__(self, group: cache_pb2.KvGroup, size_bytes: int, by: Any) -> None:
        self.buffer = SharedBuffer.create(size_bytes, by=by)
        self.buffer.array[:] = POISON
        self.group = group
        shape = (group.num_blocks, group.block_size, group.num_heads, group.head_bytes)
        strides = (group.block_stride_bytes, group.token_stride_bytes, group.head_stride_bytes, 1)
        self.planes = [
            np.lib.stride_tricks.as_strided(self.buffer.array[plane.offset_bytes :], shape, strides)
            for plane in sorted(group.planes, key=lambda plane: (plane.layer, plane.kind))
        ]

    def fill(self, block_ids: Sequence[int], tokens: Bytes) -> None:
        """Write [planes, tokens, heads, head_bytes] into whole blocks."""
        for plane, values in zip(self.planes, tokens, strict=True):
            plane[list(block_ids)] = values.reshape(len(block_ids), *plane.shape[1:])

    def read(self, block_ids: Sequence[int]) -> Bytes:
        return np.stack([plane[list(block_ids)].reshape(-1, *plane.shape[2:]) for plane in self.planes])

    def poison(self, block_ids: Sequence[int]) -> None:
        for plane in self.planes:
            plane[list(block_ids)] = POISON


class Engine:
    """One instance: its attachments, its memory, which blocks are free."""

    def __init__(
        self, model: Model, attachments: list[AsyncAttachment], memories: list[Memory], num_blocks: int
    ) -> None:
        self.model = model
        self.attachments = attachments
        self.memories = memories
        self.free = list(range(num_blocks))
        self.leaving = False

    @property
    def block_size(self) -> int:
        return self.memories[0].group.block_size

    def take(self, num_tokens: int) -> list[int]:
        """Return blocks for some tokens; none if there are not enough."""
        num_blocks = -(-num_tokens // self.block_size)
        if num_blocks > len(self.free):
            return []
        taken, self.free = self.free[:num_blocks], self.free[num_blocks:]
        return taken

    def give_back(self, block_ids: Sequence[int]) -> None:
        for memory in self.memories:
            memory.poison(block_ids)
        self.free.extend(block_ids)

    def check_canaries(self) -> None:
        """Check that no free block was written to."""
        for memory in self.memories:
            assert (memory.read(self.free) == POISON).all()


@dataclass
class Tally(Subscriber):
    """Operations that began and did not end."""

    name = "tally"
    open: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_events: int = 0

    def handle(self, batch: Sequence[Event]) -> None:
        self.num_events += len(batch)
        for event in batch:
            kind = type(event).__name__
            if kind.endswith(("Started", "Finished")) and hasattr(event, "operation_id"):
                work = kind.removesuffix("Started").removesuffix("Finished")
                self.open[work, event.operation_id] += 1 if kind.endswith("Started") else -1


@contextmanager
def suppress_reason(*reasons: str) -> Iterator[None]:
    try:
        yield
    except DepotError as error:
        if error.reason not in reasons:
            raise


class Client:
    """Does random things to a depot, up to three at a time, and looks at every byte that it gets."""

    numbers = itertools.count()

    def __init__(self, server: Server, seed: int, counts: Counter[str]) -> None:
        self.random = random.Random(seed)
        self.model = self.random.choice(MODELS)
        self._num_callers = self.random.randint(1, 3)
        self._server = server
        self._counts = counts
        self._name = f"engine-{next(self.numbers)}"
        self._client: AsyncDepotClient
        self._engine: Engine

    async def run(self, num_steps: int) -> None:
        await self._connect(self._name)
        steps: list[tuple[float, Callable[[Engine, str], Awaitable[None]]]] = [
            (30, self._store),
            (30, self._retrieve),
            (10, self._store_inline),
            (10, self._retrieve_inline),
            (6, self._look_up),
            (6, self._end_session),
            (0.3, self._clear_cache),
            (3, self._leave_and_return),
        ]
        weights, functions = zip(*steps, strict=True)

        async def caller(number: int) -> None:
            for _ in range(num_steps):
                step = self.random.choices(functions, weights)[0]
                with self._expected():
                    await step(self._engine, f"session-{number}-{self.random.randrange(3)}")
                    self._counts[step.__name__] += 1
            self._num_callers -= 1

        async with asyncio.TaskGroup() as callers:
            for number in range(self._num_callers):
                callers.create_task(caller(number))
        self._engine.check_canaries()
        if self.random.random() < 0.5:  # else the connection goes with everything in it
            for attachment in self._engine.attachments:
                await attachment.close()
        await self._client.close()

    @contextmanager
    def _expected(self) -> Iterator[None]:
        """Count failures that other callers cause, and go on."""
        try:
            yield
        except DepotError as error:
            if error.reason not in DISTURBANCES:
                raise
            self._counts[error.reason] += 1

    async def _connect(self, instance_id: str) -> None:
        address = self.random.choice(self._server.addresses)
        by = "fd" if address.startswith("unix:") and self.random.random() < 0.5 else "name"
        layout, block_size = self.random.choice(self.model.layouts), self.random.choice((4, 8, 16))
        num_blocks = self.model.num_prompts * (MAX_CHUNKS + 1) * CHUNK_SIZE // block_size
        shape = self.model.shape(block_size=block_size, num_blocks=num_blocks)
        group = layout.from_shape(shape)
        client = AsyncDepotClient(address, timeout_seconds=TIMEOUT_SECONDS)
        memories = [Memory(group, layout.size_bytes(shape), by) for _ in range(self.model.world_size)]
        attachments = [
            await self._attach(
                partial(
                    client.attach,
                    instance_id=instance_id,
                    model_name=self.model.name,
                    groups=[group],
                    regions=[memory.buffer.region],
                    world_size=self.model.world_size,
                    rank=rank,
                )
            )
            for rank, memory in enumerate(memories)
        ]
        self._client, self._engine = client, Engine(self.model, attachments, memories, num_blocks)

    async def _attach(self, attach: Callable[[], Awaitable[AsyncAttachment]]) -> AsyncAttachment:
        """Attach again until the depot has noticed that the engine of this name has left."""
        while True:
            try:
                return await attach()
            except DepotError as error:
                if error.reason != "RANK_ATTACHED":
                    raise
                self._counts[error.reason] += 1

    def _prompt(self) -> Prompt:
        path = tuple(self.random.choice((0, 0, 0, 1)) for _ in range(self.random.randint(0, MAX_CHUNKS)))
        return Prompt(
            path=path,
            num_tail_tokens=self.random.choice((0, 0, 3, 8, 15)),
            salt=self.random.choice(("", "", "salt")),
            hashed=bool(path) and self.random.random() < 0.2,
        )

    async def _disturbed(self, engine: Engine, call: Callable[..., Awaitable[Any]]) -> Any:
        """Return the answer; None if the call was cancelled, or met its deadline, before it came."""
        disturbances = ("none", "cancel", "cancel while bytes move", "clear while bytes move", "deadline")
        (disturbance,) = self.random.choices(disturbances, (76, 6, 6, 2, 10))
        if disturbance == "deadline":
            try:
                return await call(timeout_seconds=max(1e-3, self.random.random() * 0.05))
            except DepotError as error:
                # CANCELLED if the depot noticed first.
                if error.reason not in ("DEADLINE_EXCEEDED", "CANCELLED"):
                    raise
                return None
        task = asyncio.ensure_future(call(timeout_seconds=TIMEOUT_SECONDS))
        try:
            if disturbance == "cancel":
                await asyncio.wait([task], timeout=self.random.random() * 0.02)
                task.cancel()
            elif disturbance != "none":
                while not task.done() and not self._bytes_move(engine):  # noqa: ASYNC110 - no event says so
                    await asyncio.sleep(0)
                if disturbance == "cancel while bytes move":
                    task.cancel()
                else:
                    await self._client.clear_cache(model_name=engine.model.name, cache_salt="salt", force=True)
        finally:
            await asyncio.wait([task])
            failed = None if task.cancelled() else task.exception()  # an unread error would be logged
        if failed is not None:
            raise failed
        return None if task.cancelled() else task.result()

    def _bytes_move(self, engine: Engine) -> bool:
        ranks = (self._server.depot.instances.find(each.instance_id, each.rank) for each in engine.attachments)
        return any(rank.transfers for rank in ranks if rank is not None)

    async def _store(self, engine: Engine, session_id: str) -> None:
        prompt = self._prompt()
        start = self.random.randint(0, len(prompt.path))
        num_tokens = prompt.num_tokens - start * CHUNK_SIZE
        num_chunks = num_tokens // CHUNK_SIZE
        block_ids = engine.take(num_tokens)
        if prompt.num_tokens == 0 or len(block_ids) * engine.block_size < num_tokens:
            engine.give_back(block_ids)
            return
        whole = block_ids[: num_chunks * CHUNK_SIZE // engine.block_size]
        answers = []
        for rank, memory in enumerate(engine.memories):
            memory.fill(whole, content(engine.model, rank, prompt, start, num_chunks))
            store = engine.attachments[rank].store
            answers.append(
                await self._disturbed(
                    engine,
                    partial(store, session_id, prompt.message(), [block_ids], start_token=start * CHUNK_SIZE),
                )
            )
        for answer in answers:
            if answer is not None:
                self._check_counts(answer, num_tokens)
        if None in answers:  # the depot may still read the blocks, until this has answered
            with suppress_reason("SESSION_NOT_FOUND"):
                await engine.attachments[0].end_session(session_id)
        engine.give_back(block_ids)

    def _check_counts(self, answer: Any, num_tokens: int) -> None:
        counted = answer.stored_tokens + answer.resident_tokens + answer.refused_tokens + answer.tail_tokens
        assert counted == num_tokens
        assert answer.HasField("refusal") == (answer.refused_tokens > 0)
        for name in ("stored_tokens", "resident_tokens", "refused_tokens"):
            self._counts[name] += getattr(answer, name)

    async def _retrieve(self, engine: Engine, session_id: str) -> None:
        prompt = self._prompt()
        found = await self._look(engine, session_id, prompt)
        if found is None or not found.HasField("lease"):
            return
        num_chunks = self.random.randint(1, found.matched_tokens // CHUNK_SIZE)
        num_tokens = num_chunks * CHUNK_SIZE
        skip_tokens = self.random.randint(0, num_tokens // engine.block_size) * engine.block_size
        block_ids = engine.take(num_tokens)
        if not block_ids:
            return
        cut = False
        for rank, memory in enumerate(engine.memories):
            retrieve = engine.attachments[rank].retrieve
            try:
                answer = await self._disturbed(
                    engine,
                    partial(retrieve, session_id, found.lease, [block_ids], skip_tokens=skip_tokens),
                )
            except DepotError as error:
                if error.reason not in DISTURBANCES:
                    raise
                self._counts[error.reason] += 1
                break
            if answer is None:
                cut = True
                continue
            self._counts["retrieved_tokens"] += answer.retrieved_tokens
            assert answer.retrieved_tokens == num_tokens - skip_tokens
            written = memory.read(block_ids)
            expected = content(engine.model, rank, prompt, 0, num_chunks)
            assert np.array_equal(written[:, skip_tokens:], expected[:, skip_tokens:]), "wrong bytes"
            assert (written[:, :skip_tokens] == POISON).all(), "blocks below skip_tokens were written"
        if cut or self.random.random() < 0.5:
            await engine.attachments[0].release_lease(found.lease)
        engine.give_back(block_ids)

    async def _look(self, engine: Engine, session_id: str, prompt: Prompt) -> Any:
        if prompt.num_tokens == 0:
            return None
        computed_tokens = self.random.choice((0, 0, prompt.num_tokens // 2))
        found = await self._disturbed(
            engine,
            partial(
                engine.attachments[0].lookup,
                session_id,
                prompt.message(),
                computed_tokens=computed_tokens,
                max_wait_seconds=self.random.choice((0.0, 0.05)),
            ),
        )
        if found is not None:
            assert found.matched_tokens == found.l1_tokens <= prompt.num_tokens
            assert found.matched_tokens % CHUNK_SIZE == 0
            assert found.HasField("lease") == (found.matched_tokens > computed_tokens)
            num_whole_tokens = prompt.num_tokens // CHUNK_SIZE * CHUNK_SIZE
            assert found.HasField("miss") == (found.matched_tokens < num_whole_tokens or num_whole_tokens == 0)
        return found

    async def _look_up(self, engine: Engine, session_id: str) -> None:
        await self._look(engine, session_id, self._prompt())

    async def _store_inline(self, engine: Engine, session_id: str) -> None:
        prompt = self._prompt()
        start = self.random.randint(0, len(prompt.path))
        num_tokens = prompt.num_tokens - start * CHUNK_SIZE
        if prompt.num_tokens == 0:
            return
        for rank, attachment in enumerate(engine.attachments):
            chunks = [
                content(engine.model, rank, prompt, at, 1) for at in range(start, start + num_tokens // CHUNK_SIZE)
            ]
            data = b"".join(chunk.tobytes() for chunk in chunks)
            cut = sorted(self.random.randint(0, len(data)) for _ in range(3))
            pieces = [data[a:b] for a, b in itertools.pairwise([0, *cut, len(data)])]
            answer = await self._disturbed(
                engine,
                partial(attachment.store_inline, session_id, prompt.message(), pieces, start_token=start * CHUNK_SIZE),
            )
            if answer is not None:
                self._check_counts(answer, num_tokens)

    async def _retrieve_inline(self, engine: Engine, session_id: str) -> None:
        prompt = self._prompt()
        found = await self._look(engine, session_id, prompt)
        if found is None or not found.HasField("lease"):
            return
        num_chunks = found.matched_tokens // CHUNK_SIZE
        skip = self.random.randint(0, num_chunks)
        for rank, attachment in enumerate(engine.attachments):
            buffer = bytearray((num_chunks - skip) * attachment.chunk_bytes)
            done = await self._disturbed(
                engine,
                partial(self._into, attachment, session_id, found.lease, buffer, skip * CHUNK_SIZE),
            )
            if done:
                chunks = [content(engine.model, rank, prompt, at, 1) for at in range(skip, num_chunks)]
                assert buffer == b"".join(chunk.tobytes() for chunk in chunks), "wrong bytes"
                self._counts["retrieved_inline_tokens"] += (num_chunks - skip) * CHUNK_SIZE

    async def _into(
        self,
        attachment: AsyncAttachment,
        session_id: str,
        lease: Any,
        buffer: bytearray,
        skip_tokens: int,
        timeout_seconds: float,
    ) -> bool:
        await attachment.retrieve_inline_into(
            session_id, lease, buffer, skip_tokens=skip_tokens, timeout_seconds=timeout_seconds
        )
        return True

    async def _end_session(self, engine: Engine, session_id: str) -> None:
        summary = (await engine.attachments[0].end_session(session_id)).summary
        assert (summary.session_id, summary.model_name) == (session_id, engine.model.name)

    async def _clear_cache(self, engine: Engine, session_id: str) -> None:
        await self._client.clear_cache(
            model_name=self.random.choice(("", engine.model.name)),
            cache_salt=self.random.choice((None, "", "salt")),
            force=self.random.random() < 0.5,
        )

    async def _leave_and_return(self, engine: Engine, session_id: str) -> None:
        """Detach, while the other caller works, and attach new memory.

        Under the same name only if no call is on its way that means the old memory.
        """
        if engine.leaving:
            return
        engine.leaving = True
        client, alone = self._client, self._num_callers == 1
        if alone:
            engine.check_canaries()
        if self.random.random() < 0.5:
            for attachment in engine.attachments:
                await attachment.close()
            await self._connect(engine.attachments[0].instance_id if alone else f"engine-{next(self.numbers)}")
            await client.close()
        else:
            await self._connect(f"engine-{next(self.numbers)}")
            await client.close()


def ours(lines: Iterable[str]) -> Counter[str]:
    """Return this process's shared memory among the last words of lines."""
    names = (line.split()[-1] if line.split() else "" for line in lines)
    return Counter(name for name in names if f"/dev/shm/kvdepot-{os.getpid()}-" in name or "/memfd:kvdepot (" in name)


def shared_memory() -> Counter[str]:
    """Return the shared memory that this process has mapped, and the names in /dev/shm."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().replace(" (deleted)", "").splitlines()
    return ours(maps) + ours(map(str, Path("/dev/shm").iterdir()))


def tasks() -> Counter[str]:
    """Count tasks by their coroutine. gRPC's own task, which waits for the next call, is replaced after each call."""
    return Counter(repr(task.get_coro()).split(" at ")[0] for task in asyncio.all_tasks())


async def stress(start_server: Callable[..., Any], folder: Path, seed: int, num_steps: int) -> None:
    server: Server = await start_server(
        listen=("127.0.0.1:0", f"unix:{folder}/depot.sock"),
        chunk_size=CHUNK_SIZE,
        l1_size="4MiB",
        transfer_threads=1,
        lease_ttl="1s",
        session_idle_timeout="1s",
        max_wait="10s",
        event_queue_size=1_000_000,
        disable_logging=True,
    )
    depot, bus = server.depot, server.bus
    assert bus is not None
    # Small extents, so that the models' sizes have to take them from each other.
    depot.index.pool = Pool(depot.index.pool.capacity_bytes, extent_bytes=1 << 20)
    tally = Tally()
    bus.subscribe(tally)
    memory_before, tasks_before = shared_memory(), tasks()

    counts: Counter[str] = Counter()
    async with asyncio.TaskGroup() as clients:
        for number in range(NUM_CLIENTS):
            clients.create_task(Client(server, seed * NUM_CLIENTS + number, counts).run(num_steps))

    def left() -> list[object]:
        running = [*depot.instances, *(tasks() - tasks_before), *[bus] * bus.stats().depth]
        return running or [*(shared_memory() - memory_before)]

    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            while left():  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(0.01)
    assert left() == []
    depot.index.check()
    assert depot.index.num_protected == 0
    assert all(chunk.pending_write is None and chunk.num_pins == 0 for chunk in depot.index.chunks())
    assert depot.index.pool.used_bytes == sum(chunk.slot.size_bytes for chunk in depot.index.chunks())
    assert (len(depot.leases), len(depot.sessions), len(depot.instances)) == (0, 0, 0)
    assert +tally.open == Counter()
    assert bus.stats().num_dropped_by_type == bus.stats().num_errors_by_subscriber == {}
    # It was a stress.
    assert depot.index.num_evicted > 50
    assert min(counts[name] for name in ("retrieved_tokens", "retrieved_inline_tokens", "resident_tokens")) > 100


@pytest.mark.parametrize("seed", range(2))
async def test_every_byte_is_right_and_nothing_is_left(start_server: Any, tmp_path: Path, seed: int) -> None:
    await stress(start_server, tmp_path, seed, num_steps=20)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 6))
async def test_every_byte_is_right_for_a_minute(start_server: Any, tmp_path: Path, seed: int) -> None:
    await stress(start_server, tmp_path, seed, num_steps=150)
