"""A vLLM engine whose model is a hash: vLLM's own scheduler and block pool, both sides of the connector, and a depot.

A token's KV is a hash of the tokens up to it, and so is a state. Each step compares all KV and all states that it reads
with what they must be. So a wrong block is seen at once.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

BLOCK = 16
NUM_STATE_GROUPS = 3
STEP_TOKENS = 96
TOKEN_BYTES = 64
PAGE_BYTES = BLOCK * TOKEN_BYTES
STATE_BYTES = 400
RUN_SECONDS = 300.0

Tokens = list[int]


def hashed(*values: int) -> bytes:
    """Return 16 bytes that no other values give."""
    return hashlib.blake2b(repr(values).encode(), digest_size=16).digest()


def next_token(tokens: Sequence[int]) -> int:
    return int.from_bytes(hashed(*tokens)[:2], "little")


def answer(prompt: Sequence[int], count: int) -> Tokens:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class HashedEngine:
    """One engine. `num_cached` has the tokens of each request that were not computed."""

    def __init__(self, model: str, address: str, name: str, num_blocks: int, *, is_async: bool) -> None:
        import torch
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, MambaSpec
        from vllm.v1.structured_output import StructuredOutputManager

        transfer = {
            "kv_connector": "KvdepotConnector",
            "kv_connector_module_path": "kvdepot.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "engine_id": name,
            "kv_connector_extra_config": {
                "kvdepot.address": address,
                "kvdepot.model_revision": "a hash",
                "kvdepot.attach_timeout_seconds": 60.0,
                "kvdepot.lookup_timeout_seconds": 60.0,
            },
        }
        config = EngineArgs(
            model=model,
            skip_tokenizer_init=True,
            max_model_len=2048,
            max_num_batched_tokens=STEP_TOKENS,
            max_num_seqs=8,
            block_size=BLOCK,
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=True,
            async_scheduling=is_async,
            kv_transfer_config=transfer,
        ).create_engine_config()
        config.cache_config.block_size = config.cache_config.mamba_block_size = BLOCK
        config.cache_config.num_gpu_blocks = num_blocks
        states = MambaSpec(
            block_size=BLOCK,
            shapes=((STATE_BYTES,),),
            dtypes=(torch.int8,),
            page_size_padded=PAGE_BYTES,
            mamba_cache_mode=config.cache_config.mamba_cache_mode,
        )
        full = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=TOKEN_BYTES // 8, dtype=torch.float32)
        names = [f"state.{number}" for number in range(NUM_STATE_GROUPS)]
        groups = [*(KVCacheGroupSpec([each], states) for each in names), KVCacheGroupSpec(["full"], full)]
        caches = KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=groups)
        caches.hash_block_size = BLOCK
        memory = torch.zeros(num_blocks, PAGE_BYTES, dtype=torch.int8)
        views = dict.fromkeys(names, memory[:, None, None, :STATE_BYTES])
        views["full"] = memory.view(torch.float32).view(num_blocks, 1, BLOCK, TOKEN_BYTES // 4)
        self._worker = KVConnectorFactory.create_connector(config, KVConnectorRole.WORKER, caches)
        self._worker.register_kv_caches(views)  # moves the memory of the views
        self._pages: Any = views["full"].view(torch.uint8).view(num_blocks, PAGE_BYTES).numpy()
        hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_function)
        self._hasher = get_request_block_hasher(BLOCK, hash_function)
        self._scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=caches,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
        )
        self._is_async = is_async
        self._steps: list[tuple[Any, Any]] = []  # those whose results the scheduler does not have
        self._requests: dict[str, Any] = {}
        self._answers: dict[str, Tokens] = {}
        self._tables: dict[str, list[list[int]]] = {}
        self._state_columns: dict[str, int] = {}
        self._num_computed: dict[str, int] = {}
        self.num_cached: dict[str, int] = {}
        self.num_preempted = self.num_loads = self.num_states_read = 0

    def add(self, request_id: str, prompt: Tokens, max_tokens: int) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        self._requests[request_id] = request = Request(request_id, prompt, params, None, block_hasher=self._hasher)
        self._answers[request_id] = []
        self._scheduler.add_request(request)

    def abort_one(self, rng: random.Random) -> None:
        from vllm.v1.request import RequestStatus

        if alive := [each for each, request in self._requests.items() if not request.is_finished()]:
            aborted = rng.choice(alive)
            self._scheduler.finish_requests([aborted], RequestStatus.FINISHED_ABORTED)
            del self._requests[aborted]

    def forget_locally(self) -> None:
        """Reset vLLM's own cache, if no block is in use."""
        self._scheduler.reset_prefix_cache()

    def run(self) -> None:
        """Make steps until all requests and transfers have ended, and check the answers."""
        deadline = time.monotonic() + RUN_SECONDS
        scheduler = self._scheduler
        while (
            scheduler.has_unfinished_requests()
            or scheduler.has_finished_requests()
            or self._steps
            or scheduler.connector.has_pending_push_work()
        ):
            self.step()
            assert time.monotonic() < deadline, "the engine does not come to an end"
        for request_id, request in self._requests.items():
            count = request.sampling_params.max_tokens
            expected = answer(request.prompt_token_ids, count)
            assert self._answers[request_id][:count] == expected, f"{request_id} got other tokens"

    def step(self) -> None:
        """Make one step, as vLLM's engine does: with asynchronous scheduling the results come one step later."""
        from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

        scheduled, worker = self._scheduler.schedule(), self._worker
        worker.bind_connector_metadata(scheduled.kv_connector_metadata)
        sampled = self._forward(scheduled)
        worker.start_load_kv(None)
        worker.wait_for_save()
        results = worker.get_transfer_results(scheduled.finished_req_ids)
        self.num_loads += len(results.finished_recving or ()) - len(results.failed_recving or ())
        output = KVConnectorOutput(
            finished_sending=results.finished_sending,
            finished_recving=results.finished_recving,
            failed_recving=results.failed_recving,
            invalid_block_ids=worker.get_block_ids_with_load_errors(),
            kv_connector_worker_meta=worker.build_connector_worker_meta(),
        )
        worker.clear_connector_metadata()
        ids = list(sampled)
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=list(sampled.values()),
            kv_connector_output=output,
        )
        self._steps.append((scheduled, result))
        most = 1 if self._is_async and ids else 0
        while len(self._steps) > most:
            self._scheduler.update_from_output(*self._steps.pop(0))
        if not ids:
            time.sleep(0.002)  # the depot is at work

    def close(self) -> None:
        self._scheduler.connector.shutdown()
        self._worker.shutdown()

    def _forward(self, scheduled: Any) -> dict[str, Tokens]:
        """Read and check what the step needs, write what it computes, and return the sampled tokens by request."""
        for new in scheduled.scheduled_new_reqs:
            self._start(new.req_id, new.block_ids)
            self._num_computed[new.req_id] = new.num_computed_tokens
            self.num_cached[new.req_id] = new.num_computed_tokens
        cached = scheduled.scheduled_cached_reqs
        for request_id, block_ids, num_computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if request_id in cached.resumed_req_ids:
                self.num_preempted += 1
                self._start(request_id, block_ids)
            else:
                for table, more in zip(self._tables[request_id], block_ids or (), strict=bool(block_ids)):
                    table.extend(more)
            self._num_computed[request_id] = num_computed
        return {
            request_id: self._compute(request_id, self._num_computed[request_id], count)
            for request_id, count in scheduled.num_scheduled_tokens.items()
        }

    def _start(self, request_id: str, block_ids: Iterable[Iterable[int]]) -> None:
        self._tables[request_id] = [list(ids) for ids in block_ids]
        self._state_columns.pop(request_id, None)

    def _compute(self, request_id: str, start: int, count: int) -> Tokens:
        """Compute tokens of one request, with vLLM's rules for states.

        A state is read from the last column that was written, and written to the column of the step's last token.
        """
        tokens = [*self._requests[request_id].prompt_token_ids, *self._answers[request_id]]
        end = start + count
        assert end <= len(tokens), "tokens are computed that nobody has sampled"
        *states, full = self._tables[request_id]
        for position in range(start):
            assert self._kv(full, position) == hashed(*tokens[: position + 1]), f"{request_id}: KV of {position}"
        for position in range(start, end):
            self._pages[full[position // BLOCK]].reshape(BLOCK, TOKEN_BYTES)[position % BLOCK] = list(
                4 * hashed(*tokens[: position + 1])
            )
        read, written = self._state_columns.get(request_id, (start - 1) // BLOCK), (end - 1) // BLOCK
        for group, table in enumerate(states):
            if start:
                state = bytes(self._pages[table[read], :STATE_BYTES])
                assert state == 25 * hashed(group, *tokens[:start]), f"{request_id}: state {group} after {start} tokens"
                self.num_states_read += 1
            assert table[written] != 0, f"{request_id}: no block for state {group} after {end} tokens"
            self._pages[table[written], :STATE_BYTES] = list(25 * hashed(group, *tokens[:end]))
        self._state_columns[request_id] = written
        if end < len(tokens):
            return []
        self._answers[request_id].append(next_token(tokens))
        return [next_token(tokens)]

    def _kv(self, table: Sequence[int], position: int) -> bytes:
        start = position % BLOCK * TOKEN_BYTES
        return bytes(self._pages[table[position // BLOCK], start : start + 16])
