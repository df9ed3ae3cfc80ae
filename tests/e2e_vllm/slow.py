"""A connector with steps of seconds while a file exists, as with a large batch on a slow machine."""

from __future__ import annotations

import time

from kvdepot.vllm.connector import KvdepotConnector
from tests.e2e_vllm.engines import SLOW_STEP_SECONDS, slow_file


class SlowConnector(KvdepotConnector):
    """Delays the saves, for which vLLM waits at the end of each step."""

    def wait_for_save(self) -> None:
        super().wait_for_save()
        if slow_file(self._kv_transfer_config.kv_connector_extra_config["kvdepot.address"]).exists():
            time.sleep(SLOW_STEP_SECONDS)
