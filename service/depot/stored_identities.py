"""The identities under which a tenant stores chunks, to say what is different about a prompt that fits none of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import ne

from kernels.geometry import Group, PlaneKind
from service.depot.instances import Attachment
from service.l1.chunk import NamespaceStats
from service.l1.keys import Namespace, Prefix, groups_of

MAX_REMEMBERED = 64  # a lookup that fits none compares itself with all of them: 50 microseconds
MAX_NAMED = 5  # differences in a text
_SHOWN = (
    *("model_name", "model_revision", "world_size", "rank", "adapter", "chunk_size", "hash_block_size"),
    "block_hash_seed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredIdentity:
    """What makes one namespace differ from another, apart from the tenant: see `RankIdentity`."""

    model_name: str
    world_size: int
    rank: int
    groups: tuple[Group, ...]
    cache_salt: str
    adapter: str
    chunk_size: int
    hash_block_size: int
    model_revision: str = ""
    block_hash_seed: str = ""
    facts: tuple[object, ...] = field(init=False, repr=False)
    """All that may differ, to count quickly in how many of them two identities do."""

    def __post_init__(self) -> None:
        named = (getattr(self, name) for name in _SHOWN)
        object.__setattr__(self, "facts", (*named, self.cache_salt, *group_facts(self.groups)))

    @classmethod
    def of(cls, attachment: Attachment, prefix: Prefix) -> StoredIdentity:
        """Return the identity of a rank's chunks of a prompt."""
        return cls(
            model_name=attachment.model_name,
            world_size=attachment.world_size,
            rank=attachment.rank,
            groups=attachment.groups,
            cache_salt=prefix.cache_salt,
            adapter=prefix.adapter,
            chunk_size=attachment.chunk_size,
            hash_block_size=prefix.hash_block_size,
            model_revision=attachment.model_revision,
            block_hash_seed=attachment.block_hash_seed if prefix.hash_block_size else "",
        )

    @classmethod
    def of_stats(cls, stats: NamespaceStats) -> StoredIdentity:
        """Return the identity of the chunks of a namespace.

        Raises: ValueError.
        """
        return cls(
            model_name=stats.model_name,
            world_size=stats.world_size,
            rank=stats.rank,
            groups=groups_of(stats.geometry),
            cache_salt=stats.cache_salt,
            adapter=stats.adapter,
            chunk_size=stats.chunk_size,
            hash_block_size=stats.hash_block_size,
            model_revision=stats.model_revision,
            block_hash_seed=stats.block_hash_seed,
        )

    def num_differences(self, here: StoredIdentity) -> int:
        """Return in how many facts two identities differ."""
        return sum(map(ne, self.facts, here.facts))

    def differences(self, here: StoredIdentity) -> list[str]:
        """Return what is different about `here`, as texts. A salt may be a secret, so its value is not shown."""
        return [
            *(
                f"{name} is {getattr(self, name)!r}, here {getattr(here, name)!r}"
                for name in _SHOWN
                if getattr(self, name) != getattr(here, name)
            ),
            *(["cache_salt is another one"] if self.cache_salt != here.cache_salt else []),
            *_of_groups(self.groups, here.groups),
        ]


class StoredIdentities:
    """The identities of a tenant's latest stores. It begins with those of the chunks that the depot `adopted`."""

    def __init__(self, adopted: Iterable[NamespaceStats] = ()) -> None:
        self._identities: OrderedDict[Namespace, StoredIdentity] = OrderedDict()
        for stats in islice(adopted, MAX_REMEMBERED):
            with suppress(ValueError):  # keys of another format, which no lookup finds
                self._identities[stats.namespace] = StoredIdentity.of_stats(stats)

    def __len__(self) -> int:
        return len(self._identities)

    def remember(self, namespace: Namespace, attachment: Attachment, prefix: Prefix) -> None:
        """Note that a chunk of this namespace was stored."""
        if namespace not in self._identities:
            self._identities[namespace] = StoredIdentity.of(attachment, prefix)
            if len(self._identities) > MAX_REMEMBERED:
                self._identities.popitem(last=False)
        self._identities.move_to_end(namespace)

    def with_chunks(self, has_chunks: Callable[[Namespace], bool]) -> Iterator[StoredIdentity]:
        """Yield the identities that still have chunks, the latest first."""
        return (identity for namespace, identity in reversed(self._identities.items()) if has_chunks(namespace))

    def nearest(self, here: StoredIdentity, has_chunks: Callable[[Namespace], bool]) -> list[str]:
        """Return the differences of the nearest identity that still has chunks; empty if none has. The latest wins."""
        nearest = min(self.with_chunks(has_chunks), key=here.num_differences, default=None)
        return nearest.differences(here) if nearest is not None else []


def unknown_identity(nearest: list[str]) -> str:
    """Return the text of a miss, with the differences of the nearest identity that is stored."""
    if not nearest:
        return "nothing is stored for this model, revision, geometry, salt and adapter, nor for others"
    more = f"; and {len(nearest) - MAX_NAMED} more" if len(nearest) > MAX_NAMED else ""
    named = "; ".join(nearest[:MAX_NAMED])
    return f"nothing is stored under this identity. Of the nearest that is stored, {named}{more}"


def group_facts(groups: tuple[Group, ...]) -> tuple[object, ...]:
    """Return all that may differ in the groups of two ranks, for chunks."""
    named = ((group.dtype, group.num_layers, group.num_heads, group.head_bytes, group.holds_state) for group in groups)
    kinds = (frozenset(plane.kind for plane in group.planes) for group in groups)
    return (len(groups), *chain(*named), *kinds)


def _of_groups(stored: tuple[Group, ...], here: tuple[Group, ...]) -> Iterator[str]:
    if len(stored) != len(here):
        yield f"the number of groups is {len(stored)}, here {len(here)}"
        return
    for number, (group, other) in enumerate(zip(stored, here, strict=True)):
        for name in ("dtype", "num_layers", "num_heads", "head_bytes", "holds_state"):
            if getattr(group, name) != getattr(other, name):
                yield f"groups[{number}].{name} is {getattr(group, name)!r}, here {getattr(other, name)!r}"
        if (kinds := _kinds(group)) != (other_kinds := _kinds(other)):
            yield f"the planes of groups[{number}] are {kinds}, here {other_kinds}"


def _kinds(group: Group) -> str:
    return " and ".join(PlaneKind(kind).name for kind in sorted({plane.kind for plane in group.planes}))
