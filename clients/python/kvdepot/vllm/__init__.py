"""kvdepot as a KV connector of vLLM, loaded by one argument:

    vllm serve MODEL --kv-transfer-config '{
        "kv_connector": "KvdepotConnector", "kv_connector_module_path": "kvdepot.vllm", "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"kvdepot.address": "unix:/run/kvdepot/kvdepot.sock"}}'

`KvdepotConnector` is the only name that needs vLLM, and is imported when it is asked for; the modules below know vLLM's
objects by their attributes alone. `scheduler` decides in the engine core's process, `worker` moves blocks in each
worker's; `orders` is what they send each other with the steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvdepot.vllm.connector import KvdepotConnector

__all__ = ["KvdepotConnector"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kvdepot.vllm.connector import KvdepotConnector

    return KvdepotConnector
