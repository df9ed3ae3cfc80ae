"""A connector that writes down how many tokens vLLM computes in each step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kvdepot.vllm.connector import KvdepotConnector
from tests.e2e_vllm.engines import COUNT_VARIABLE


class CountingConnector(KvdepotConnector):
    """Appends a line for each step that computes anything: the tokens of each request."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        if scheduler_output.num_scheduled_tokens:
            with Path(os.environ[COUNT_VARIABLE]).open("a") as file:
                file.write(json.dumps(scheduler_output.num_scheduled_tokens) + "\n")
        return super().build_connector_meta(scheduler_output)
