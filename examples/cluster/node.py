"""A node of the cluster: a depot with an L1 of its own, in front of the tiers that all nodes share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from examples.cluster.servers import SharedTier
from examples.demo.decoder import PREFILL_STEP_TOKENS
from kvdepot import DepotClient, DepotError
from kvdepot.cli.processes import Child, ChildFailed, server_child
from kvdepot.cli.tiers import name_of, why_not_used
from kvdepot.v1 import admin_pb2, cache_pb2

L1_SIZE = "256MiB"
_OPEN_SECONDS = 30.0
_WRITE_SECONDS = 30.0
_POLL_SECONDS = 0.02


class Node:
    """A depot as a process, which can be killed and started again. `number` counts from 1."""

    def __init__(self, number: int, tiers: Sequence[SharedTier], until_end: ExitStack) -> None:
        self.number = number
        self.address = ""
        self._flags = ["--l1-size", L1_SIZE, "--chunk-size", str(PREFILL_STEP_TOKENS), "--l2-write", "all"]
        for tier in tiers:
            self._flags += ["--l2", tier.url]
        self._until_end = until_end.enter_context(ExitStack())  # of its own: nodes start at the same time
        self._child: Child | None = None

    def __repr__(self) -> str:
        return f"<Node {self.number} at {self.address or 'nowhere'}>"

    def start(self) -> None:
        """Start the depot with an empty L1, and wait until its tiers are open.

        Raises: ChildFailed, DepotError.
        """
        name = f"the depot of node {self.number}"
        self._child, addresses = self._until_end.enter_context(server_child(*self._flags, name=name))
        self.address = addresses[0]
        late = self._until(lambda tier: tier.state == admin_pb2.TIER_STATE_AVAILABLE, _OPEN_SECONDS)
        for tier in late:
            raise ChildFailed(f"{name}: {name_of(tier)} {why_not_used(tier)}")

    def kill(self) -> None:
        """Kill the depot, as a crash of the node would."""
        assert self._child is not None
        self._child.kill()

    def wait_until_written(self) -> None:
        """Wait until the tiers have what was stored here. They get it behind the store, which did not wait for them.

        Raises: ChildFailed, DepotError.
        """
        traffic_of = self._until(
            lambda tier: not tier.traffic.num_queued_writes and not tier.traffic.num_running_writes, _WRITE_SECONDS
        )
        for tier in traffic_of:
            raise ChildFailed(f"node {self.number} could not write to {name_of(tier)} in {_WRITE_SECONDS:g} s")

    def tiers(self) -> list[admin_pb2.TierStatus]:
        """Return the tiers behind L1.

        Raises: DepotError.
        """
        return self._until(lambda tier: False, 0.0)

    def _until(
        self, is_so: Callable[[admin_pb2.TierStatus], bool], timeout_seconds: float
    ) -> list[admin_pb2.TierStatus]:
        """Wait until something is so for all tiers. Return those for which it is not, after the timeout.

        Raises: DepotError: also after the timeout the depot does not answer.
        """
        deadline = time.monotonic() + timeout_seconds
        with DepotClient(self.address) as client:
            while True:
                is_last = time.monotonic() > deadline
                try:
                    tiers = [tier for tier in client.get_status().tiers if tier.tier == cache_pb2.TIER_L2]
                except DepotError:  # a connection to a process that has just started may fail once
                    if is_last:
                        raise
                else:
                    others = [tier for tier in tiers if not is_so(tier)]
                    if is_last or not others:
                        return others
                time.sleep(_POLL_SECONDS)
