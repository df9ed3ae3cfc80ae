"""What SGLang knows of itself beyond the storage config: its version, its arguments, and an id of all its ranks."""

from __future__ import annotations

import logging
import uuid
from datetime import timedelta
from typing import Any

logger = logging.getLogger(__name__)

AGREE_SECONDS = 30.0
_KEY = "kvdepot/engine"


def sglang_version() -> str:
    """Return SGLang's version, or an empty text."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sglang")
    except PackageNotFoundError:
        return ""


def arguments() -> Any:
    """Return SGLang's arguments (`ServerArgs`), or None if this process has none."""
    try:
        from sglang.srt.runtime_context import get_server_args

        return get_server_args()
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        logger.debug("no arguments: %r", error)
        return None


def agreed_id() -> str | None:
    """Return an id that all ranks of this engine agree on, new with each start. None: they can't speak to each other.

    The first rank that asks decides, in the store by which torch's process group was set up.
    """
    try:
        import torch.distributed as dist
    except ImportError:  # no SGLang is without torch, but tests are
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    store = dist.distributed_c10d._get_default_store()
    store.set_timeout(timedelta(seconds=AGREE_SECONDS))
    mine = uuid.uuid4().hex
    found: bytes = store.compare_set(_KEY, "", mine)
    return found.decode()
