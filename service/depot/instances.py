"""The instances of a tenant, their ranks, and the memory that is mapped for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kernels.copies import ChunkCopy
from kernels.geometry import Group, Region
from kernels.transfer import Transfer
from service.depot.values import AttachRequest
from service.errors import DepotError, InstanceMismatch, InstanceNotFound, RankNotFound
from service.l1.keys import RankIdentity

_COMMON = ("model_name", "world_size", "model_revision", "block_hash_seed", "chunk_size")  # to all ranks of an instance


class MappedBuffer(Protocol):
    """An engine's paged KV buffer, mapped, which copies its own blocks.

    A transfer waits for the engine's event `ready_event`, a handle, if that is not empty.
    """

    @property
    def transfer_backend(self) -> str:
        """The backend of the buffer, as clients see it."""

    @property
    def can_wait_for_events(self) -> bool:
        """Whether transfers may have a `ready_event`."""

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the engine's memory that are mapped."""

    @property
    def objects(self) -> frozenset[Hashable]:
        """The identities of the memory. Two buffers with a common one share memory, even under different names."""

    def check_size(self) -> None:
        """Check that the engine took no memory away and that its device has not failed.

        Raises: kernels.errors.RegionError.
        """

    def store(self, copies: Sequence[ChunkCopy], ready_event: bytes) -> Transfer:
        """Start to copy blocks into chunks."""

    def retrieve(self, copies: Sequence[ChunkCopy], ready_event: bytes) -> Transfer:
        """Start to copy chunks into blocks."""

    def close(self) -> None:
        """Unmap; no transfer may be running."""


class TransferBackend(Protocol):
    """What maps engines' memory."""

    @property
    def name(self) -> str:
        """The backends of this machine, such as "host, cuda"."""

    def attach(
        self, groups: Sequence[Group], regions: Sequence[Region], chunk_size: int, *, allow_process_fd: bool
    ) -> MappedBuffer:
        """Map an engine's memory, which takes time. The errors are those of `kernels.errors`.

        Raises: GeometryError, RegionError, AccessDenied, BackendError.
        """

    def checksum(self, offset_bytes: int, size_bytes: int) -> int:
        """Return the kvsum64 of a range of L1, taken as a whole chunk. Any thread may call this.

        Raises: ValueError.
        """

    def checksum_part(self, l1_offset_bytes: int, size_bytes: int, chunk_offset_bytes: int) -> int:
        """Return what a range of L1 adds to the kvsum64 of a chunk, in which it begins at `chunk_offset_bytes`.

        Parts of pieces add up modulo 2**64. A piece begins at a multiple of 8 bytes of the chunk, and ends at one or at
        the chunk's end. Any thread may call this.

        Raises: ValueError.
        """


@dataclass(slots=True, kw_only=True, eq=False)
class Attachment:
    """One attached rank of an instance. `buffer` is None if it moves bytes inline only.

    `failed` is set when its memory has become unusable, so that the attachment must end; `failure` says why. `closing`
    is set when its engine wants it to end.
    """

    instance_id: str
    model_name: str
    world_size: int
    rank: int
    groups: tuple[Group, ...]
    identity: RankIdentity
    chunk_bytes: int
    slot_bytes: int
    buffer: MappedBuffer | None
    transfer_backend: str
    model_revision: str = ""
    block_hash_seed: str = ""
    prefill_tokens_per_second: float | None = None
    attach_time: float = field(default_factory=time.time)
    detached: bool = False
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    failure: DepotError | None = None
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    transfers: set[Transfer] = field(default_factory=set)

    state_groups: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.state_groups = tuple(number for number, group in enumerate(self.groups) if group.holds_state)

    @property
    def chunk_size(self) -> int:
        """The tokens of a chunk."""
        return self.identity.chunk_size

    def fail(self, error: DepotError) -> DepotError:
        """End the attachment with an error, and return the error. The first one counts."""
        if self.failure is None:
            self.failure = error
        self.failed.set()
        return error

    def present_bytes(self, absent_tokens: Sequence[int]) -> int:
        """Return the bytes of a chunk without `absent_tokens[group]` tokens; all of its bytes if this is empty."""
        return self.chunk_bytes - sum(
            absent * group.token_bytes for absent, group in zip(absent_tokens, self.groups, strict=bool(absent_tokens))
        )


@dataclass(slots=True, eq=False)
class Instance:
    """The attached ranks of one scheduler. Their chunks have `chunk_size` tokens."""

    instance_id: str
    model_name: str
    world_size: int
    model_revision: str = ""
    block_hash_seed: str = ""
    chunk_size: int = 256
    ranks: dict[int, Attachment] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every rank is attached."""
        return len(self.ranks) == self.world_size

    @property
    def has_states(self) -> bool:
        """Whether a rank has a group that holds states."""
        return any(attachment.state_groups for attachment in self.ranks.values())

    def require_rank(self, rank: int) -> Attachment:
        """Return the attachment of a rank.

        Raises: RankNotFound.
        """
        attachment = self.ranks.get(rank)
        if attachment is None:
            raise RankNotFound(self.instance_id, rank)
        return attachment


class Instances:
    """Instances by id. An instance is there while a rank of it is attached."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}

    def __len__(self) -> int:
        return len(self._instances)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._instances.values())

    def find(self, instance_id: str, rank: int) -> Attachment | None:
        """Return the attachment of a rank."""
        instance = self._instances.get(instance_id)
        return instance.ranks.get(rank) if instance is not None else None

    def require(self, instance_id: str) -> Instance:
        """Return an instance.

        Raises: InstanceNotFound.
        """
        instance = self._instances.get(instance_id)
        if instance is None:
            raise InstanceNotFound(instance_id)
        return instance

    def named(self, instance_id: str, model_name: str) -> Instance:
        """Return an instance, or one of a model: a complete one if there is one. One of the two names is empty.

        Raises: InstanceNotFound.
        """
        if instance_id:
            return self.require(instance_id)
        of_model = [instance for instance in self if instance.model_name == model_name]
        if not of_model:
            raise InstanceNotFound(model_name=model_name)
        return min(of_model, key=lambda instance: (not instance.complete, instance.instance_id))

    def check_fits(self, request: AttachRequest) -> None:
        """Check that a new rank has what all ranks of an instance have in common: the model, the chunk size, …

        Raises: InstanceMismatch.
        """
        instance = self._instances.get(request.instance_id)
        if instance is None:
            return
        different = [
            f"{name} {getattr(instance, name)!r}, and this rank says {getattr(request, name)!r}"
            for name in _COMMON
            if getattr(instance, name) != getattr(request, name)
        ]
        if different:
            raise InstanceMismatch(f"instance {request.instance_id!r} has {'; '.join(different)}")

    def add(self, attachment: Attachment) -> None:
        """Add a rank that passed `check_fits` and is not attached."""
        instance = self._instances.setdefault(
            attachment.instance_id,
            Instance(attachment.instance_id, *(getattr(attachment, name) for name in _COMMON)),
        )
        instance.ranks[attachment.rank] = attachment

    def remove(self, attachment: Attachment) -> int:
        """Remove a rank. Return how many are left of its instance."""
        instance = self._instances[attachment.instance_id]
        del instance.ranks[attachment.rank]
        if not instance.ranks:
            del self._instances[attachment.instance_id]
        return len(instance.ranks)
