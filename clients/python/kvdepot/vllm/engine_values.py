"""vLLM's requests and block pool, as values of `kvdepot.connector`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvdepot.connector.identity import traceparent_of
from kvdepot.connector.request_state import RequestTraits
from kvdepot.vllm.adapters import Adapters

WILL_CONTINUE = "kvdepot.will_continue"
"""The key of a request's `kv_transfer_params` that says whether its prompt is likely to come again with more tokens."""


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


def request_traits(request: Any, adapters: Adapters) -> RequestTraits:
    """Return the properties of vLLM's request that never change."""
    return RequestTraits(
        cache_salt=request.cache_salt or "",
        traceparent=traceparent_of(request.trace_headers),
        adapter=adapters.of_request(request.lora_request),
        may_load=not request.skip_reading_prefix_cache,
        has_token_ids=request.prompt_embeds is None,
        has_only_tokens=not getattr(request, "mm_features", None),
        will_continue=_will_continue(getattr(request, "kv_transfer_params", None)),
    )


def _will_continue(params: Any) -> bool | None:
    """Return what a request's `kv_transfer_params` say. A user wrote them: what is no bool says nothing."""
    value = params.get(WILL_CONTINUE) if isinstance(params, Mapping) else None
    return value if isinstance(value, bool) else None
