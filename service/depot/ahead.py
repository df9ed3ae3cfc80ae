"""The match of a prompt ahead of its request: without a session and a lease, in L1 and in the tiers."""

from __future__ import annotations

from service.depot.depot import Depot
from service.depot.match import Match, match_prefix
from service.depot.tier_search import Admit, extend
from service.l1.keys import Prefix

MAX_TRIES = 3
"""How often the tiers are asked if chunks or ranks go away meanwhile. After that, L1's part of the match counts."""


async def match_ahead(depot: Depot, instance_id: str, prefix: Prefix, admit: Admit) -> Match:
    """Match a prompt, and begin to load as much of its continuation as `admit` allows, however slow a tier is.

    What another call is storing is not waited for.

    Raises: InstanceNotFound, InvalidRequest, BlockHashSeedMissing; errors of `admit`.
    """
    num_tries = 0
    while True:
        match = await match_prefix(depot, instance_id, prefix)
        num_tries += 1
        if not depot.tiers or match.pending_writes or num_tries > MAX_TRIES:
            return match
        try:
            if await extend(depot, instance_id, prefix, match, admit=admit):
                return match
        except BaseException:
            match.unpin(depot)
            raise
        match.unpin(depot)
