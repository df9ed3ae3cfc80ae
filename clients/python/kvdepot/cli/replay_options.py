"""What a run of a replay plays: one trace, one size of L1, one eviction policy, and the other options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

from kvdepot.cli.replay_node import chunk_bytes_of
from kvdepot.cli.request_router import RouterName

NODE, RUN = "{node}", "{run}"


class WritePolicy(StrEnum):
    """When a depot writes a chunk to its tiers: see the setting `l2_write`."""

    SECOND_TOUCH = "second-touch"
    ALL = "all"
    EVICTED = "evicted"
    NONE = "none"


class Eviction(StrEnum):
    """What decides which chunk leaves L1: see the setting `eviction`. `ALL` is every other one in turn."""

    AUTO = "auto"
    LRU = "lru"
    LFU = "lfu"
    LRU2 = "lru2"
    LEARNED = "learned"
    ALL = "all"


def policies(chosen: Sequence[Eviction]) -> list[Eviction]:
    """Return the policies of an option, each once."""
    named = [policy for policy in Eviction if policy is not Eviction.ALL] if Eviction.ALL in chosen else chosen
    return list(dict.fromkeys(named))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRun:
    """One run. Two runs with the same options find the same hits, if one request is played at a time."""

    trace: str
    limit_requests: int | None = None
    model: int | None = None
    l1_chunks: int
    eviction: Eviction = Eviction.AUTO
    l2: Sequence[str] = ()
    l2_write: WritePolicy = WritePolicy.SECOND_TOUCH
    nodes: int = 1
    router: RouterName = RouterName.RANDOM
    seed: int = 0
    concurrency: int = 1
    compare_lru: Sequence[int] = ()
    kv_bytes_per_token: int
    prefill_rate: float

    @property
    def name(self) -> str:
        """What distinguishes it from the other runs of a comparison."""
        return f"{self.eviction}, {self.l1_chunks:,} chunks"

    def flags(self, node: int, block_tokens: int) -> list[str]:
        """Return the flags of one node's depot, for a trace with such blocks. Nodes count from 1."""
        flags = ["--l1-size", str(self.l1_chunks * chunk_bytes_of(block_tokens))]
        for url in self.l2:
            flags += ["--l2", url.replace(NODE, str(node)).replace(RUN, f"{self.eviction}-{self.l1_chunks}")]
        return [*flags, "--l2-write", self.l2_write, "--eviction", self.eviction]

    def as_json(self) -> str:
        """Return it as one line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the run that was made such a text."""
        values = json.loads(text)
        names = {"eviction": Eviction, "l2_write": WritePolicy, "router": RouterName}
        return cls(**values | {key: make(values[key]) for key, make in names.items()})
