"""Loads that have ended, as the engine's scheduler needs to know them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kvdepot.connector.block_transfers import BlockTransfer


class EndedLoad(NamedTuple):
    """A load that has ended at all workers, or has failed at one.

    The blocks of the request hold the first `num_tokens` tokens. If the load `failed`, that is 0, and the depot may
    still write to the blocks: the engine releases its own reference to them and gives the request other ones.
    """

    request_id: str
    num_tokens: int
    failed: bool


def ended_loads(failed: Iterable[BlockTransfer], done: Iterable[BlockTransfer]) -> list[EndedLoad]:
    """Return the loads among transfers that have just failed, and among those that are done.

    A load that had failed before has ended already. The loads of finished requests concern no one.
    """
    ended = [EndedLoad(each.state.request_id, 0, True) for each in failed if _is_awaited(each)]
    for each in done:
        if _is_awaited(each) and not each.failed:
            num_tokens = each.end_token if each.moved_end is None else each.moved_end
            ended.append(EndedLoad(each.state.request_id, num_tokens, False))
    return ended


def _is_awaited(transfer: BlockTransfer) -> bool:
    return transfer.is_load and not transfer.state.finished
