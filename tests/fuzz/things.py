"""Everything that exists in the fuzzed depot: engines with memory, prompts, sessions, and ids from answers."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import numpy as np

from kvdepot import KvShape, SharedBuffer
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2
from telemetry.events import EVENT_TYPES
from tests.fuzz.rpcs import RPCS, Message

CHUNK_SIZE = 16
MOST_TOKENS = 6 * CHUNK_SIZE + 5
WITNESS = "witness"
"""What the healthy client's names begin with: nothing of its own is ever used for a fuzzed call."""

_SHAPE = KvShape(num_layers=2, num_blocks=64, block_size=4, num_heads=3, head_size=8, dtype="uint16")
_ATTENTION = (layouts.NL_X_TWO_NB_BS_NH_HS, _SHAPE)
_WIDE = (layouts.NB_NL_TWO_NH_BS_HS, replace(_SHAPE, num_blocks=32, block_size=8))
_LATENT = (layouts.NL_X_NB_BS_HS, replace(_SHAPE, num_layers=1, num_blocks=24, block_size=16, num_heads=1))
_HASHES_PER_CHUNK = 2
_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank with its memory, as it attaches."""

    request: cache_pb2.AttachInstanceRequest

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk, all groups together."""
        return sum(len(group.planes) * CHUNK_SIZE * group.num_heads * group.head_bytes for group in self.request.groups)

    def tables(self, num_tokens: int, random: Random) -> list[cache_pb2.BlockTable]:
        """Return tables of different blocks for so many tokens, in any order. The last block may be partly filled."""
        return [
            cache_pb2.BlockTable(
                block_ids=random.sample(
                    range(group.num_blocks), min(-(-num_tokens // group.block_size), group.num_blocks)
                )
            )
            for group in self.request.groups
        ]


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease that a lookup gave."""

    instance_id: str
    session_id: str
    lease_id: str
    num_tokens: int


class Things:
    """Ranks that stay attached (`homes`), ranks to attach and detach (`visitors`), and names of all that there is.

    Names are found by the name of the field that they belong in. Ids in answers, such as those of leases, are learnt.
    """

    def __init__(self, buffers: Sequence[SharedBuffer]) -> None:
        by_name, by_fd, spare = (buffer.region for buffer in buffers)
        attention, hybrid, latent = (_groups(_ATTENTION), _groups(_WIDE, _LATENT), _groups(_LATENT))
        self.homes = [
            _rank("home-name", "model", attention, by_name),
            _rank("home-fd", "hybrid", hybrid, by_fd),
            _rank("home-inline", "model", attention, None),
            _rank("home-pair", "pair", attention, by_name, world_size=2),
            _rank("home-pair", "pair", attention, by_fd, world_size=2, rank=1),
            _rank("home-half", "pair", attention, None, world_size=2),
        ]
        self.visitors = [
            _rank(f"visitor-{number}", model_name, groups, region)
            for number in range(4)
            for model_name, groups, region in (
                ("model", attention, spare),
                ("hybrid", hybrid, by_fd),
                ("latent", latent, spare),
                ("latent", latent, None),
            )
        ]
        self.visitors.append(_rank("home-half", "pair", attention, None, world_size=2, rank=1))
        self.grants: deque[Grant] = deque(maxlen=_REMEMBERED)
        self._names: dict[str, list[str]] = {
            "instance_id": [rank.request.instance_id for rank in (*self.homes, *self.homes, *self.visitors[::4])],
            "session_id": [f"s{number}" for number in range(6)],
            "model_name": ["model", "hybrid", "pair", "latent"],
            "model_revision": ["", "model 1", "hybrid 1", "pair 1", "latent 1"],
            "block_hash_seed": ["", "sha256 seed=0", "sha256 seed=1"],
            "tenant": [""],
            "cache_salt": ["", "salt"],
            "adapter": ["", "adapter"],
            "dtype": ["uint16", "bfloat16", "float8_e4m3fn"],
            "name": [buffer.region.posix_shm.name for buffer in buffers if buffer.region.HasField("posix_shm")],
            "device_uuid": ["GPU-0"],
            "event_types": sorted(EVENT_TYPES),
            "service": ["", *sorted({rpc.path.split("/")[1] for rpc in RPCS})],
            "file_by_filename": ["kvdepot/v1/cache.proto", "google/protobuf/any.proto"],
            "file_containing_symbol": sorted({rpc.request.DESCRIPTOR.full_name for rpc in RPCS}),
            "all_extension_numbers_of_type": ["kvdepot.v1.Prefix"],
        }
        self._sessions: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED)
        self._learnt: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))

    def rank_of(self, instance_id: str, random: Random) -> Rank:
        """Return one of the instance's ranks; any rank for an instance that does not exist."""
        known = [rank for rank in (*self.homes, *self.visitors) if rank.request.instance_id == instance_id]
        return random.choice(known or self.homes)

    def name(self, field: str, random: Random) -> str:
        """Return a name for a field: of an existing thing, of a removed one, or of a thing of another kind.

        It draws the same numbers from `random`, independent of the learnt names.
        """
        where = random.random()
        learnt = self._learnt.get(field) or self._learnt["lease_id"]
        names: Sequence[str] = self._names.get(field, ())
        if where < 0.1:
            names = [name for others in self._names.values() for name in others]
        elif learnt and (where < 0.3 or not names):
            names = learnt
        return names[int(random.random() * len(names))] if names else ""

    def prefix(self, random: Random) -> cache_pb2.Prefix:
        """Return a prompt: of few families, so that prefixes meet; by its token ids or by hashes."""
        family = random.randrange(4)
        num_tokens = random.choice((CHUNK_SIZE, 2 * CHUNK_SIZE, 3 * CHUNK_SIZE, random.randint(1, MOST_TOKENS)))
        names: dict[str, Any] = {
            "cache_salt": random.choice(("", "", "", "salt")),
            "adapter": random.choice(("", "", "adapter")),
        }
        if random.random() < 0.2:
            num_hashes = -(-num_tokens // (CHUNK_SIZE // _HASHES_PER_CHUNK))
            hashes = [bytes([family, number]) * 16 for number in range(num_hashes)]
            return cache_pb2.Prefix(block_hashes=hashes, hash_block_size=CHUNK_SIZE // _HASHES_PER_CHUNK, **names)
        return cache_pb2.Prefix(token_ids=_TOKENS[family][:num_tokens], **names)

    def grant(self, random: Random) -> Grant:
        """Return a lease that was given, which may have ended."""
        at = random.random()
        return self.grants[int(at * len(self.grants))] if self.grants else Grant("home-name", "s0", "none", CHUNK_SIZE)

    def session(self, random: Random) -> tuple[str, str]:
        """Return the instance and the id of a session that was there."""
        at = random.random()
        return self._sessions[int(at * len(self._sessions))] if self._sessions else ("home-name", "s0")

    def learn(self, request: Message, answer: Message) -> None:
        """Remember every name in an answer, by its field, and the session and the lease of a lookup."""
        if isinstance(answer, cache_pb2.LookupResponse):
            session = request.instance_id, request.session_id
            self._sessions.append(session)
            if answer.lease.lease_id:
                self.grants.append(Grant(*session, answer.lease.lease_id, answer.matched_tokens))
        for field, name in _names_in(answer):
            if not name.startswith(WITNESS):
                self._learnt[field.removeprefix("next_")].append(name)


def num_tokens(prefix: cache_pb2.Prefix) -> int:
    """Return the length of a prompt."""
    return len(prefix.token_ids) or len(prefix.block_hashes) * prefix.hash_block_size


@contextmanager
def things() -> Iterator[Things]:
    """Yield the things of one run; release their memory at the end."""
    by: tuple[Literal["name", "fd"], ...] = ("name", "fd", "name")
    size_bytes = max(_size_bytes(_ATTENTION), _size_bytes(_WIDE, _LATENT))
    buffers = [SharedBuffer.create(size_bytes, by=each) for each in by]
    for seed, buffer in enumerate(buffers):
        buffer.array[:] = np.random.default_rng(seed).integers(0, 256, size_bytes, np.uint8)
    with closing(buffers[0]), closing(buffers[1]), closing(buffers[2]):
        yield Things(buffers)


_TOKENS = [np.random.default_rng(family).integers(0, 1 << 32, MOST_TOKENS, np.uint32).tolist() for family in range(4)]
_Shaped = tuple[layouts.Layout, KvShape]


def _size_bytes(*shaped: _Shaped) -> int:
    return sum(layout.size_bytes(shape) for layout, shape in shaped)


def _groups(*shaped: _Shaped) -> list[cache_pb2.KvGroup]:
    """Return groups one after the other in one region."""
    groups = []
    offset_bytes = 0
    for layout, shape in shaped:
        group = layout.from_shape(shape)
        for plane in group.planes:
            plane.offset_bytes += offset_bytes
        offset_bytes += layout.size_bytes(shape)
        groups.append(group)
    return groups


def _rank(
    instance_id: str,
    model_name: str,
    groups: Sequence[cache_pb2.KvGroup],
    region: cache_pb2.MemoryRegion | None,
    *,
    world_size: int = 1,
    rank: int = 0,
) -> Rank:
    request = cache_pb2.AttachInstanceRequest(
        instance_id=instance_id,
        model_name=model_name,
        groups=groups,
        world_size=world_size,
        rank=rank,
        model_revision=f"{model_name} 1",
        block_hash_seed="sha256 seed=0",
    )
    if region is not None:
        request.regions.append(region)
    return Rank(request)


def _names_in(message: Any) -> Iterator[tuple[str, str]]:
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else (value,):
            if field.message_type is not None:
                yield from _names_in(each)
            elif isinstance(each, str):
                yield field.name, each
