"""A connector whose loads fail: each asks the real server for a lease that there is not."""

from __future__ import annotations

import dataclasses
from typing import Any

from kvdepot.vllm.connector import KvdepotConnector


class FaultyConnector(KvdepotConnector):
    """Every second load fails."""

    _num_loads = 0

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        orders = self._orders()
        for position, order in enumerate(orders.loads):
            type(self)._num_loads += 1
            if self._num_loads % 2:
                orders.loads[position] = dataclasses.replace(order, leases=("there-is-no-such-lease",))
        super().start_load_kv(forward_context, **kwargs)
