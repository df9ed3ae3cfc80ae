"""A worker's KV cache, as the groups and regions to attach.

vLLM hands over one view per layer, [blocks, heads, tokens, content], in any physical order. Where its kernels want
smaller blocks than its scheduler, a view counts those.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvdepot.connector.commands import Table, Tables
from kvdepot.layout import layouts
from kvdepot.layout.layout import Layout
from kvdepot.layout.strided import Strided, strided
from kvdepot.memory.cuda import CudaRegions
from kvdepot.memory.shared_buffer import By
from kvdepot.memory.shared_regions import SharedRegions
from kvdepot.requests import block_table
from kvdepot.v1.cache_pb2 import BlockTable, KvGroup, MemoryRegion


@dataclass(frozen=True, slots=True)
class TableSource:
    """Whose block table a group that was attached takes: that of a group of vLLM, each block split so many times."""

    vllm_group: int
    blocks_per_block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedMemory:
    """What to attach, and how to make its block tables."""

    groups: tuple[KvGroup, ...]
    regions: tuple[MemoryRegion, ...]
    sources: tuple[TableSource, ...]
    on_gpu: bool

    def block_tables(self, tables: Tables) -> list[BlockTable]:
        """The block table of each group that was attached."""
        return [_split(tables[source.vllm_group], source.blocks_per_block) for source in self.sources]


def share(kv_caches: Mapping[str, Any], kv_cache_config: Any, by: By) -> AttachedMemory:
    """Shares the memory of the views, which moves it if it is a CPU's, and describes it.

    Layers of one group of vLLM that differ in shape or strides become several groups.

    Raises:
        ValueError: a view is missing, or its shape is not one that is known.
        OSError: there is no room for shared memory.
        kvdepot.memory.cuda.NotShareable: CUDA can't share this memory.
    """
    first = next(iter(kv_caches.values()))
    on_gpu = first.device.type == "cuda"
    shared: SharedRegions | CudaRegions = CudaRegions() if on_gpu else SharedRegions(by)
    groups, sources = [], []
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        for layout, views in _alike(group, kv_caches):
            blocks = int(views[0].shape[0])
            if blocks % kv_cache_config.num_blocks:
                raise ValueError(
                    f"a view of {blocks} blocks does not fit {kv_cache_config.num_blocks} of the scheduler"
                )
            groups.append(layout.from_tensors(views, shared))
            sources.append(TableSource(number, blocks // kv_cache_config.num_blocks))
    return AttachedMemory(groups=tuple(groups), regions=shared.regions, sources=tuple(sources), on_gpu=on_gpu)


def _alike(group: Any, kv_caches: Mapping[str, Any]) -> Iterator[tuple[Layout, list[Any]]]:
    """The views of a group's layers, those of one kind together. Layers may share one view."""
    by_layer = getattr(group.kv_cache_spec, "kv_cache_specs", {})
    kinds: dict[tuple[Layout, Strided], list[Any]] = defaultdict(list)
    for name in group.layer_names:
        if name not in kv_caches:
            raise ValueError(f"vLLM registered no KV cache for the layer {name}")
        layout, view = _layout(by_layer.get(name, group.kv_cache_spec)), kv_caches[name]
        if all(view.data_ptr() != other.data_ptr() for other in kinds[layout, strided(view)]):
            kinds[layout, strided(view)].append(view)
    for (layout, _), views in kinds.items():
        yield layout, views


def _layout(spec: Any) -> Layout:
    """Whatever a token has for a head is taken as one; MLA has one head, and no values of its own."""
    return layouts.VLLM_MLA if spec.head_size_v == 0 else layouts.VLLM_PACKED


def _split(table: Table, parts: int) -> BlockTable:
    ids = table.block_ids
    if parts != 1:
        ids = [block_id * parts + part for block_id in ids for part in range(parts)]
    return block_table(ids, absent_blocks=table.absent_blocks * parts)
