"""The parts of vLLM and of the depot that the connector uses, in plain Python: requests, the block pool, lookups."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from kvdepot.connector.block_allocations import BlockAllocation
from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.commands import BlockIds, StepCommands, WorkerReport
from kvdepot.connector.lookups import PendingLookup
from kvdepot.connector.request_limits import RequestParameters
from kvdepot.connector.scheduler import ConnectorScheduler
from kvdepot.connector.scheduler_settings import SchedulerSettings
from kvdepot.connector.session_ids import SessionIds
from kvdepot.v1.cache_pb2 import Prefix
from kvdepot.vllm.adapters import Adapters
from kvdepot.vllm.engine_values import VllmBlockReferences, request_traits
from tests.fakes.clock import Clock

BLOCK = 4
CHUNK = 8


@dataclass(eq=False)
class Request:
    """A request of vLLM: its tokens grow as they are sampled, and with them the hashes of its whole blocks."""

    request_id: str = "request"
    tokens: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    skip_reading_prefix_cache: bool = False
    cache_salt: str | None = None
    lora_request: Any = None
    trace_headers: dict[str, str] | None = None
    prompt_embeds: Any = None
    prompt_token_ids: list[int] | None = None
    prompt_is_token_ids: list[bool] | None = None
    kv_transfer_params: Any = None
    mm_features: Any = ()
    num_generated_tokens: int = 0
    block_size: int = BLOCK

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.tokens) - self.num_generated_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def all_token_ids(self) -> list[int]:
        return self.tokens

    @property
    def block_hashes(self) -> list[bytes]:
        hashes, parent = [], b""
        for start in range(0, len(self.tokens) - self.block_size + 1, self.block_size):
            text = parent + repr(self.tokens[start : start + self.block_size]).encode()
            parent = hashlib.sha256(text).digest()
            hashes.append(parent)
        return hashes


def embeddings_of(count: int) -> Any:
    """Return the embeddings of so many positions. None of them is zero."""
    return np.ones((count, 2), np.float32)


TABLE: BlockIds = (list(range(10, 20)),)


def request_of(count: int, request_id: str = "request", **facts: Any) -> Request:
    """Return a request with this many tokens."""
    return Request(request_id=request_id, tokens=list(range(count)), **facts)


@dataclass
class Block:
    block_id: int
    ref_cnt: int = 0


class Pool:
    """vLLM's block pool, as far as references go."""

    def __init__(self, num_blocks: int) -> None:
        self.blocks = [Block(number) for number in range(num_blocks)]
        self.null_block = self.blocks[0]
        self.freed_ids: list[int] = []

    def touch(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            assert block is not self.null_block, "the null block holds nothing"
            block.ref_cnt += 1

    def free_blocks(self, ordered_blocks: Iterable[Block]) -> None:
        for block in ordered_blocks:
            assert block.ref_cnt > 0, f"block {block.block_id} is freed once too often"
            block.ref_cnt -= 1
            self.freed_ids.append(block.block_id)

    @property
    def kept(self) -> dict[int, int]:
        """References by block."""
        return {block.block_id: block.ref_cnt for block in self.blocks if block.ref_cnt}


@dataclass
class LookupCall:
    session_id: str
    prefix: Prefix
    computed_tokens: int
    traceparent: str
    prefill_rate: float | None
    will_continue: bool | None
    lookup: PendingLookup


class LookupClient:
    """Answers when a test says so, and keeps the leases that are not released."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.paused = False
        self.calls: list[LookupCall] = []
        self.leased: set[str] = set()
        self._lease_numbers = itertools.count(1)
        self.session_ids = SessionIds()
        self.ended_sessions: list[str] = []
        self.dropped_sessions: list[str] = []
        self.given_up: list[PendingLookup] = []

    def open_session(self, request_id: str) -> str:
        return self.session_ids.open(request_id)

    def begin(
        self,
        session_id: str,
        prefix: Prefix,
        computed_tokens: int,
        parent: str,
        prefill_rate: float | None,
        will_continue: bool | None,
    ) -> PendingLookup:
        lookup = PendingLookup(deadline=self._clock() + 60)
        self.calls.append(LookupCall(session_id, prefix, computed_tokens, parent, prefill_rate, will_continue, lookup))
        return lookup

    def give_up(self, lookup: PendingLookup) -> None:
        lookup.given_up = True
        self.given_up.append(lookup)
        self.release(lookup.leases)

    def release(self, leases: Sequence[str]) -> None:
        for lease in leases:
            self.leased.remove(lease)  # once

    def end_session(self, session_id: str) -> None:
        self.ended_sessions.append(session_id)

    def forget_session(self, session_id: str) -> None:
        self.dropped_sessions.append(session_id)
        self.session_ids.close(session_id)

    def answer(self, matched_tokens: int, *, good_for_seconds: float = 60.0) -> PendingLookup:
        """Answer the last lookup. A match beyond the computed tokens is leased for so long."""
        call = self.calls[-1]
        lookup = call.lookup
        if matched_tokens > call.computed_tokens:
            lookup.leases = (f"lease-{next(self._lease_numbers)}",)
            self.leased.update(lookup.leases)
            lookup.lease_until = self._clock() + good_for_seconds
        lookup.matched_tokens = matched_tokens
        if lookup.given_up:
            self.release(lookup.leases)
        return lookup


class BlockReporter:
    def __init__(self) -> None:
        self.allocations: list[BlockAllocation] = []
        self.ended_sessions: list[str] = []

    def report(self, allocation: BlockAllocation) -> None:
        self.allocations.append(allocation)

    def end_session(self, session_id: str) -> None:
        self.ended_sessions.append(session_id)


class SchedulerDriver:
    """Drives the connector's scheduler as vLLM does, with fakes around it. `tables` are the requests' block tables."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        num_workers: int = 1,
        reports: bool = False,
        is_heard: bool = True,
        **settings: Any,
    ) -> None:
        self.pool = Pool(num_blocks)
        self.clock = Clock()
        self.lookup_client = LookupClient(self.clock)
        self.reports = BlockReporter()
        self.tables: dict[str, BlockIds] = {}
        self.arrived: set[str] = set()
        defaults = {
            "hash_block_size": BLOCK,
            "groups": (CacheGroup(block_size=BLOCK),),
            "loads": True,
            "stores": True,
            "lookup_timeout_seconds": 1.0,
            "lease_hold_seconds": 5.0,
            "longest_transfer_seconds": 30.0,
            "prefill_tokens_per_second": 0.0,
            "steps_ahead": 1,
        }
        all_settings = SchedulerSettings(num_blocks=num_blocks, num_workers=num_workers, **{**defaults, **settings})
        adapters, parameters = Adapters(), RequestParameters()
        self.scheduler = ConnectorScheduler(
            all_settings,
            self.lookup_client,
            self.reports if reports else None,
            lambda request: request_traits(request, adapters, parameters),
            self.clock,
        )
        self.scheduler.bind(VllmBlockReferences(self.pool))
        if is_heard:
            self.scheduler.reported(WorkerReport(chunk_sizes=dict.fromkeys(range(num_workers), CHUNK)))

    def step(
        self,
        scheduled: dict[Any, int],
        new_blocks: Sequence[tuple[str, BlockIds, bool]] = (),
        *,
        may_store: bool = True,
    ) -> StepCommands:
        """Make one step, as vLLM does: first the connector's step, and then the requests count the scheduled tokens."""
        for request in scheduled:
            if request.request_id not in self.arrived:
                self.arrived.add(request.request_id)
                self.scheduler.arrived(request)
        numbers = {request.request_id: count for request, count in scheduled.items()}
        commands = self.scheduler.step(numbers, self.tables.get, new_blocks, may_store=may_store)
        for request, count in scheduled.items():
            request.num_computed_tokens += count
        return commands

    def mark_done(
        self, *transfer_ids: int, failed: Sequence[int] = (), partial: Mapping[int, int] | None = None
    ) -> None:
        """Report, as one worker, that transfers are done."""
        report = WorkerReport(failed=set(failed), partial=dict(partial or {}))
        for transfer_id in transfer_ids:
            report.done[transfer_id] += 1
        self.scheduler.reported(report)


@dataclass(frozen=True)
class FullAttentionSpec:
    """A spec of vLLM; the connector recognizes it by the name of its class."""

    block_size: int = BLOCK
    head_size: int = 8
    head_size_v: int = 8
    num_kv_heads: int = 2
    num_head_slots: int | None = None
    state_content_bytes: int | None = None
    tokens_per_state: int = 1


@dataclass
class Group:
    layer_names: list[str]
    kv_cache_spec: Any = field(default_factory=FullAttentionSpec)
    enable_kv_transfer: bool = True
    host_resident: bool = False


@dataclass
class KvCacheConfig:
    num_blocks: int
    kv_cache_groups: list[Group]


def _total_num_kv_heads() -> int:
    return 2


def vllm_config(**changes: Any) -> Any:
    """Return as much of vLLM's configuration as the connector reads. ``changes`` have dotted names with ``__``."""

    class HfConfig(SimpleNamespace):
        def to_dict(self) -> dict[str, Any]:
            return dict(vars(self))

    config = SimpleNamespace(
        model_config=SimpleNamespace(
            model="org/model",
            revision=None,
            dtype="torch.bfloat16",
            quantization=None,
            seed=0,
            get_total_num_kv_heads=_total_num_kv_heads,
            hf_config=HfConfig(rope_theta=10000.0, transformers_version="5.1", _commit_hash="0" * 40),  # of the hub
        ),
        cache_config=SimpleNamespace(cache_dtype="auto", prefix_caching_hash_algo="sha256", calculate_kv_scales=False),
        load_config=SimpleNamespace(load_format="auto"),
        speculative_config=None,
        parallel_config=SimpleNamespace(
            tensor_parallel_size=1, decode_context_parallel_size=1, prefill_context_parallel_size=1
        ),
        kv_transfer_config=SimpleNamespace(is_kv_consumer=True, kv_load_failure_policy="recompute"),
    )
    for name, value in changes.items():
        *parents, last = name.split("__")
        target: Any = config
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, last, value)
    return config
