"""What the operations need of a tier behind L1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from service.l1.chunk import Chunk
from service.l1.keys import ChunkKey
from service.tiers.answer import Answer as Answer
from service.tiers.answer import Doubt as Doubt
from service.tiers.load import Load
from service.tiers.record import Owner
from service.tiers.snapshot import TierSnapshot


class Tier(Protocol):
    """A tier. Only the event loop uses it. No method raises for what the store does, and no wait is without a bound.

    `name` is unique. `bit` is a power of 2: `Chunk.in_tiers` has it if the tier is known to have the chunk. A lookup
    waits at most `answer_seconds` for the tier's answer.
    """

    name: str
    bit: int
    is_local: bool
    answer_seconds: float

    def lacks(self, key: ChunkKey) -> bool:
        """Return whether the tier certainly has no chunk of a key. That counts as a question if it is certain.

        A remote tier is never certain without a wait.
        """

    def holds(self, key: ChunkKey) -> bool:
        """Return whether a local tier can read a chunk. This is no use of it. A remote tier does not know."""

    async def find(self, keys: Sequence[ChunkKey], owner: Owner, timeout_seconds: float) -> Answer:
        """Return which chunks the tier has, within the timeout. A local tier answers without a wait."""

    def load(self, loads: Sequence[Load]) -> None:
        """Begin to read chunks into L1, in this order. The end of each comes within the bounds of the tier."""

    def seconds_to_read(self, num_bytes: int) -> float | None:
        """Return how long it takes by the measured rate, with what is queued already. None: nothing was measured."""

    def write(self, chunks: Sequence[Chunk]) -> None:
        """Queue chunks that the tier does not have. What the queue has no space for is dropped, oldest first.

        A chunk may leave L1 while it waits. It is pinned while it is written, and that does not count as a use.
        """

    def set_tenants(self, disk_share_bytes: Mapping[str, int]) -> None:
        """Take all tenants that there are, with their shares of a local tier: 0 for a tenant without one.

        When a local tier opens, it forgets the chunks of all others.
        """

    async def clear(self, tenant: str | None, model_name: str, cache_salt: str | None) -> int:
        """Forget the chunks of a tenant (None: of all), a model ("": any) and a salt (None: any). Return how many.

        Chunks that are on their way in or out are forgotten, too. It ends when no lookup can find any of them here.
        """

    def snapshot(self) -> TierSnapshot:
        """Return the tier's state."""

    async def run(self) -> None:
        """Open the tier and serve it, until the task is cancelled. A tier that can't be opened is tried again."""

    async def close(self) -> None:
        """End what waits and runs, within a bound. After this nothing of the tier touches L1."""
