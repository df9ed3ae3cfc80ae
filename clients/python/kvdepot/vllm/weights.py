"""Identifies the weights that engines have loaded, by the files of their models."""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvdepot.vllm.files import changed_after, content, files_in, hub_folder

logger = logging.getLogger(__name__)

MAX_READ_BYTES = 16 << 20
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".tensors", ".json", ".py")
_HUB_SNAPSHOT = re.compile(r".*/models--(?P<name>[^/]+)/snapshots/[^/]+/?")


def hub_name(model: str) -> str:
    """Return the model's name on Hugging Face's hub if `model` is the folder of its snapshot, else `model`."""
    found = _HUB_SNAPSHOT.fullmatch(model)
    return found["name"].replace("--", "/") if found else model


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """The process that loads the weights. It began at `start`, in seconds since the epoch."""

    engine_id: str
    start: float


def weights_facts(model: str, revision: str | None, download_dir: str | None, engine: EngineProcess) -> list[Any]:
    """Return facts that identify the weights: the model's files, or its name and revision without files here.

    If files changed after the engine's process began, the engine may have loaded others. Then its id is part of the
    result, so that the engine shares KV with no other one.
    """
    location = Path(model)
    try:
        if location.is_file():
            files = [location]
        elif folder := location if location.is_dir() else hub_folder(model, "config.json", download_dir, revision):
            files = files_in(folder, lambda name: name.endswith(_SUFFIXES))
        else:
            return [hub_name(model), str(revision)]
        facts: list[Any] = [content(path, MAX_READ_BYTES) for path in files]
        late = [path.name for path in files if changed_after(path, engine.start)]
    except OSError as error:
        logger.warning("the files of %s can't be read, so this engine shares no KV: %s", model, error)
        return [hub_name(model), str(revision), engine.engine_id]
    if late:
        logger.warning(
            "files of %s changed while the engine started (%s), so it shares no KV until it is started again",
            model,
            ", ".join(late[:3]),
        )
        facts.append(engine.engine_id)
    return [hub_name(model), *facts]


def process_start() -> float:
    """Return when this process began, in seconds since the epoch."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot_seconds = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_seconds)
