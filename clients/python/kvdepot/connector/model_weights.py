"""Names the revision of one model's weights: a commit of the hub, or a digest of its files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvdepot.connector.model_files import changed_after, content, files_in, hub_folder, is_hub_link

MAX_READ_BYTES = 16 << 20
MAX_FILES = 4_096  # of a model; the largest have some hundred
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".tensors", ".json", ".py")
_HUB_SNAPSHOT = re.compile(r".*/models--(?P<name>[^/]+)/snapshots/[^/]+/?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class UnknownWeights(Exception):
    """The connector can't know which weights the engine has loaded. The message says why."""


def hub_name(model: str) -> str:
    """Return the model's name on Hugging Face's hub if `model` is the folder of its snapshot, else `model`."""
    found = _HUB_SNAPSHOT.fullmatch(model)
    return found["name"].replace("--", "/") if found else model


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """The process that loads the weights. It began at `start`, in seconds since the epoch.

    `unique_id` is the same in all processes of the engine, and another one after each start.
    """

    unique_id: str
    start: float


def weights_revision(model: str, model_config: Any, download_dir: str | None, engine: EngineProcess) -> str:
    """Return a text that is equal for equal weights only. `model` says where to look, and is no part of the text.

    Raises: UnknownWeights, OSError.
    """
    location = Path(model)
    if location.is_file():
        return _of_files([location], engine)
    folder = location if location.is_dir() else hub_folder(model, "config.json", download_dir, model_config.revision)
    if folder is None:
        return _of_hub(model, model_config)
    files = files_in(folder, lambda name: name.endswith(_SUFFIXES))
    if not files:
        raise UnknownWeights(f"the folder {folder} has no files of weights")
    if len(files) > MAX_FILES:
        raise UnknownWeights(f"the folder {folder} has {len(files):,} files, more than {MAX_FILES:,}")
    if _COMMIT.fullmatch(folder.name) and all(map(is_hub_link, files)):
        return folder.name
    return _of_files(files, engine)


def _of_files(files: Sequence[Path], engine: EngineProcess) -> str:
    """Return a digest of the files. If one changed after the engine's process began, others may have been loaded."""
    facts = [content(path, MAX_READ_BYTES) for path in files]
    if late := [path.name for path in files if changed_after(path, engine.start)]:
        raise UnknownWeights(f"files changed while the engine started ({', '.join(late[:3])}): start it again")
    return f"files-{hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()}"


def _of_hub(model: str, model_config: Any) -> str:
    """Return the commit of a model that is on the hub, and not in a local folder."""
    revision = str(model_config.revision)
    if _COMMIT.fullmatch(revision):
        return revision
    # The commit of the configuration is that of the weights only if both come from one repository.
    config_path = getattr(model_config, "hf_config_path", None)
    commit = str(getattr(model_config.hf_config, "_commit_hash", None))
    if _COMMIT.fullmatch(commit) and ":" not in model and config_path in (None, "", model):
        return commit
    raise UnknownWeights(f"{model} is no folder of this machine, and its revision is not named by a commit")


def process_start() -> float:
    """Return when this process began, in seconds since the epoch."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot_seconds = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_seconds)
