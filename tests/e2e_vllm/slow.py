"""A connector whose steps last for seconds while a file says so, as those of a large batch on a slow machine do."""

from __future__ import annotations

import time
from pathlib import Path

from kvdepot.vllm.connector import KvdepotConnector

STEP_SECONDS = 6.0


def slow_file(address: str) -> Path:
    """While it is there, steps are slow."""
    return Path(address.removeprefix("unix:") + ".slow")


class SlowConnector(KvdepotConnector):
    """vLLM waits for its saves at the end of each step."""

    def wait_for_save(self) -> None:
        super().wait_for_save()
        if slow_file(self._kv_transfer_config.kv_connector_extra_config["kvdepot.address"]).exists():
            time.sleep(STEP_SECONDS)
