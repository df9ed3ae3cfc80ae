"""A connector with failing loads: each names a lease that the real server does not have."""

from __future__ import annotations

import dataclasses
from typing import Any

from kvdepot.vllm.connector import KvdepotConnector


class FaultyConnector(KvdepotConnector):
    """Every second load fails."""

    _num_loads = 0

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        commands = self._commands()
        for position, command in enumerate(commands.loads):
            type(self)._num_loads += 1
            if self._num_loads % 2:
                commands.loads[position] = dataclasses.replace(command, leases=("there-is-no-such-lease",))
        super().start_load_kv(forward_context, **kwargs)
