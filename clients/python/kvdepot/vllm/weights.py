"""Which weights an engine has loaded, told by the files of its model."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from kvdepot.vllm.files import changed_after, content, files_in

logger = logging.getLogger(__name__)

MAX_READ_BYTES = 16 << 20
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".tensors", ".json", ".py")
_HUB_SNAPSHOT = re.compile(r".*/models--(?P<name>[^/]+)/snapshots/[^/]+/?")


def hub_name(model: str) -> str:
    """The name of a model on Hugging Face's hub, where vLLM was given or found the folder of its snapshot."""
    found = _HUB_SNAPSHOT.fullmatch(model)
    return found["name"].replace("--", "/") if found else model


def weights_facts(model: str, revision: str | None, download_dir: str | None, engine_id: str) -> list[Any]:
    """What tells weights apart: the files that they were loaded from, or else the name and revision alone.

    Files that changed after this process began may not be those that were loaded. Then ``engine_id`` is part of it, so
    that the engine shares with nobody.
    """
    place = Path(model)
    try:
        if place.is_file():
            files = [place]
        elif (folder := place if place.is_dir() else _snapshot(model, revision, download_dir)) is not None:
            files = files_in(folder, lambda name: name.endswith(_SUFFIXES))
        else:
            return [hub_name(model), str(revision)]
        facts: list[Any] = [content(path, MAX_READ_BYTES) for path in files]
        late = [path.name for path in files if changed_after(path, _process_start())]
    except OSError as error:
        logger.warning("the files of %s can't be read, so this engine shares no KV: %s", model, error)
        return [hub_name(model), str(revision), engine_id]
    if late:
        logger.warning(
            "files of %s changed while the engine started (%s), so it shares no KV until it is started again",
            model,
            ", ".join(late[:3]),
        )
        facts.append(engine_id)
    return [hub_name(model), *facts]


def _snapshot(model: str, revision: str | None, download_dir: str | None) -> Path | None:
    """The folder of Hugging Face's cache that a model was loaded from; None if it is not there."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "config.json", cache_dir=download_dir, revision=revision)
    except (ImportError, ValueError):  # there is no such library, or this is no name of a model
        return None
    return Path(found).parent if isinstance(found, str) else None


def _process_start() -> float:
    """When this process began, in Unix time."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot_seconds = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_seconds)
