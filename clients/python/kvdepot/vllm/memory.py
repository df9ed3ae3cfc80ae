"""Shares a vLLM worker's KV cache, as the groups and regions to attach.

vLLM has one view per layer, [blocks, heads, tokens, content], in any physical order. If its kernels want smaller blocks
than its scheduler, a view counts the smaller ones. A layer that holds states has a view of bytes, with one state in
each block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvdepot.connector.attached_memory import AttachedMemory, TableSource
from kvdepot.layout import layouts
from kvdepot.layout.layout import Layout
from kvdepot.layout.strided import Locator, Strided, strided
from kvdepot.memory.cuda import CudaRegions
from kvdepot.memory.shared_buffer import By
from kvdepot.memory.shared_regions import SharedRegions
from kvdepot.v1.cache_pb2 import KvGroup
from kvdepot.vllm.groups import cache_group


def share(kv_caches: Mapping[str, Any], kv_cache_config: Any, by: By) -> AttachedMemory:
    """Share the memory of the views and describe it. A CPU's memory is moved into shared memory.

    Layers of one group of vLLM that differ in shape or strides become several groups.

    Raises: ValueError, OSError, kvdepot.memory.cuda.NotShareable.
    """
    first = next(iter(kv_caches.values()))
    on_gpu = first.device.type == "cuda"
    shared: SharedRegions | CudaRegions = CudaRegions() if on_gpu else SharedRegions(by)
    groups, sources = [], []
    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        for layout, views in _views_by_layout(group, kv_caches):
            num_blocks = int(views[0].shape[0])
            if num_blocks % kv_cache_config.num_blocks:
                raise ValueError(
                    f"a view of {num_blocks} blocks does not fit {kv_cache_config.num_blocks} of the scheduler"
                )
            groups.append(layout.from_tensors(views, shared))
            sources.append(TableSource(index, num_blocks // kv_cache_config.num_blocks))
    return AttachedMemory(groups=tuple(groups), regions=shared.regions, sources=tuple(sources), on_gpu=on_gpu)


@dataclass(frozen=True, slots=True)
class _States:
    """The layout of layers that hold states."""

    block_size: int

    def from_tensors(self, views: list[Any], shared: Locator) -> KvGroup:
        """Describe the views of some layers."""
        return layouts.states_from_tensors(views, shared, block_size=self.block_size)


def _views_by_layout(group: Any, kv_caches: Mapping[str, Any]) -> Iterator[tuple[Layout | _States, list[Any]]]:
    """Yield the views of a group's layers, those of equal layout and strides together. Layers may share one view."""
    by_layer = getattr(group.kv_cache_spec, "kv_cache_specs", {})
    found: dict[tuple[Layout | _States, Strided], list[Any]] = defaultdict(list)
    for name in group.layer_names:
        if name not in kv_caches:
            raise ValueError(f"vLLM registered no KV cache for the layer {name}")
        layout, view = _layout(by_layer.get(name, group.kv_cache_spec)), kv_caches[name]
        views = found[layout, strided(view)]
        if all(view.data_ptr() != other.data_ptr() for other in views):
            views.append(view)
    for (layout, _), views in found.items():
        yield layout, views


def _layout(spec: Any) -> Layout | _States:
    """Return the layout of a layer. A plane has all bytes of a token and a head. MLA has one head and no V."""
    if cache_group(spec).holds_state:
        return _States(spec.block_size)
    return layouts.VLLM_MLA if spec.head_size_v == 0 else layouts.VLLM_PACKED
