"""kvdepot as a KV connector of vLLM, loaded by one argument:

    vllm serve MODEL --kv-transfer-config '{
        "kv_connector": "KvdepotConnector", "kv_connector_module_path": "kvdepot.vllm", "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"kvdepot.address": "unix:/run/kvdepot/kvdepot.sock"}}'

Only `KvdepotConnector` needs vLLM, and it is imported at its first use. The other modules know vLLM's objects by their
attributes alone, and turn them into the values of `kvdepot.connector`, which does the work.
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
