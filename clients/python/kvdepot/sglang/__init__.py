"""kvdepot as a storage backend of SGLang's HiCache, loaded by two arguments:

    sglang serve MODEL --enable-hierarchical-cache --hicache-storage-backend dynamic \
        --hicache-storage-backend-extra-config '{
            "backend_name": "kvdepot", "module_path": "kvdepot.sglang", "class_name": "KvdepotHiCache",
            "interface_v1": 1, "allocator": "shm", "kvdepot.address": "unix:/run/kvdepot/kvdepot.sock"}'

Only `backend` and `engine_facts` need SGLang, and they are imported at their first use. The other modules know SGLang's
objects by their attributes alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvdepot.sglang.backend import KvdepotHiCache

__all__ = ["KvdepotHiCache"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kvdepot.sglang.backend import KvdepotHiCache

    return KvdepotHiCache
