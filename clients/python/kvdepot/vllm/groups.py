"""vLLM's KV cache groups: what of a prefix each one keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """Layers that share a block table.

    Full attention reads all of a prefix. Layers with a ``window`` read so many tokens before the next one, those with
    a ``local_chunk`` the tokens since its last multiple; vLLM puts its null block in the place of blocks before that.
    All are in tokens.
    """

    block_size: int
    window: int | None = None
    local_chunk: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether all of a prefix is kept."""
        return self.window is None and self.local_chunk is None

    def first_needed(self, end: int) -> int:
        """Where the first block begins that is needed to go on after ``end`` tokens."""
        skipped = 0
        if self.window is not None:
            skipped = max(0, end - self.window)
        elif self.local_chunk is not None:
            skipped = end // self.local_chunk * self.local_chunk
        return skipped // self.block_size * self.block_size


def cache_groups(kv_cache_config: Any) -> tuple[CacheGroup, ...]:
    """The groups of an engine that `check_engine` has found to be served."""
    return tuple(cache_group(layer_specs(group)[0]) for group in kv_cache_config.kv_cache_groups)


def layer_specs(group: Any) -> list[Any]:
    """The specs of a group's layers; most groups have one for all."""
    by_layer = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return [group.kv_cache_spec] if by_layer is None else list(by_layer.values())


def reported_group(groups: Sequence[CacheGroup]) -> int | None:
    """The group whose blocks are told to the depot: the first of full attention, which loses none; None: no group."""
    return next((number for number, group in enumerate(groups) if group.is_full), None)


def cache_group(spec: Any) -> CacheGroup:
    """What layers of a spec keep."""
    block_size = spec.block_size
    match type(spec).__name__:
        case "SlidingWindowSpec":  # the window of vLLM has the next token in it
            window = spec.sliding_window - 1 + getattr(spec, "extra_retained_tokens", 0)
            return CacheGroup(block_size=block_size, window=window)
        case "ChunkedLocalAttentionSpec":
            return CacheGroup(block_size=block_size, local_chunk=spec.attention_chunk_size)
        case _:
            return CacheGroup(block_size=block_size)
