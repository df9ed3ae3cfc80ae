"""vLLM's requests and block pool, as values of `kvdepot.connector`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kvdepot.connector.identity import traceparent_of
from kvdepot.connector.request_limits import RequestParameters
from kvdepot.connector.request_state import RequestTraits
from kvdepot.vllm.adapters import Adapters
from kvdepot.vllm.embeddings import named_tokens


class VllmBlockReferences:
    """vLLM's block pool; implements `kvdepot.connector.block_transfers.BlockReferences`."""

    def __init__(self, block_pool: Any) -> None:
        self._pool = block_pool

    @property
    def null_block_id(self) -> int:
        """The id of vLLM's null block."""
        return int(self._pool.null_block.block_id)

    def hold(self, block_ids: Sequence[int]) -> None:
        """Take a reference to each block."""
        self._pool.touch([self._pool.blocks[block_id] for block_id in block_ids])

    def release(self, block_ids: Iterable[int]) -> None:
        """Give the references back. The first block is the first one to be reused."""
        self._pool.free_blocks([self._pool.blocks[block_id] for block_id in block_ids])


def request_traits(request: Any, adapters: Adapters, parameters: RequestParameters) -> RequestTraits:
    """Return the properties of vLLM's request that never change. `parameters` reads its `kv_transfer_params`."""
    limits = parameters.limits(getattr(request, "kv_transfer_params", None))
    return RequestTraits(
        cache_salt=request.cache_salt or "",
        traceparent=traceparent_of(request.trace_headers),
        adapter=adapters.of_request(request.lora_request),
        may_load=not request.skip_reading_prefix_cache,
        has_token_ids=request.prompt_embeds is None,
        has_only_tokens=not getattr(request, "mm_features", None),
        will_continue=limits.will_continue,
        max_load_tokens=limits.max_load_tokens,
        max_store_tokens=limits.max_store_tokens,
        named_tokens=named_tokens(request),
    )
