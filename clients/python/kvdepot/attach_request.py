"""The request of an attach, made from a caller's groups and regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kvdepot.errors import invalid
from kvdepot.v1.cache_pb2 import AttachInstanceRequest, KvGroup, MemoryRegion
from kvdepot.wrong_arguments import message


def attach_request(
    instance_id: str,
    model_name: str,
    groups: Iterable[KvGroup],
    regions: Iterable[MemoryRegion],
    world_size: int,
    rank: int,
    prefill_tokens_per_second: float | None = None,
    model_revision: str = "",
    block_hash_seed: str = "",
    chunk_size: int = 0,
) -> AttachInstanceRequest:
    """Return the request of an attach. Planes name regions that are there; without regions they have no place at all.

    Raises: InvalidArgument.
    """
    request = message(
        AttachInstanceRequest,
        instance_id=instance_id,
        model_name=model_name,
        groups=_listed(groups),
        regions=_listed(regions),
        world_size=world_size,
        rank=rank,
        prefill_tokens_per_second=prefill_tokens_per_second,
        model_revision=model_revision,
        block_hash_seed=block_hash_seed,
        chunk_size=chunk_size,
    )
    num_regions = len(request.regions)
    for number, group in enumerate(request.groups):
        for index, plane in enumerate(group.planes):
            if not num_regions and (plane.region or plane.offset_bytes):
                raise invalid(
                    "regions",
                    f"is empty, and groups[{number}] describes memory: pass `regions=shared.regions`. An engine that "
                    "only moves bytes inline describes its groups by `Layout.without_memory`",
                )
            if num_regions and plane.region >= num_regions:
                raise invalid(
                    f"groups[{number}].planes[{index}].region",
                    f"is {plane.region}, and there are {num_regions} regions: pass all `regions` of the SharedRegions "
                    "that the group was made with",
                )
    return request


def _listed(messages: Any) -> Any:
    """Return the elements of an iterable that can be read once only, so that an error may look at them again."""
    return messages if isinstance(messages, Sequence) or not hasattr(messages, "__next__") else list(messages)
