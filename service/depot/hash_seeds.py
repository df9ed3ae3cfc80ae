"""The seeds of block hashes that keep engines apart which would share chunks otherwise."""

from __future__ import annotations

from itertools import chain

from service.depot.depot import Depot
from service.depot.instances import Attachment
from service.depot.stored_identities import StoredIdentity, group_facts

MAX_SEEDS = 8  # in one acknowledgement


def other_hash_seeds(depot: Depot, attachment: Attachment) -> list[str]:
    """Return the other seeds of ranks and chunks of the tenant that have a rank's model and geometry, sorted.

    They may also differ from it in their chunk size, because other blocks may ask for other chunks.
    A rank without a seed of its own may use no block hashes, so it gets none.
    """
    if not attachment.block_hash_seed:
        return []
    found = {attachment.block_hash_seed, ""}
    here = _facts(attachment)
    attached = (instance.ranks.get(attachment.rank) for instance in depot.instances)
    for each in chain(depot.stored_identities.with_chunks(depot.index.has_chunks), attached):
        if each is not None and each.block_hash_seed not in found and _facts(each) == here:
            found.add(each.block_hash_seed)
    return sorted(found - {attachment.block_hash_seed, ""})[:MAX_SEEDS]


def _facts(of: StoredIdentity | Attachment) -> tuple[object, ...]:
    """Return what a rank brings to all of its chunks, apart from the hashes."""
    return (of.model_name, of.model_revision, of.world_size, of.rank, *group_facts(of.groups))
