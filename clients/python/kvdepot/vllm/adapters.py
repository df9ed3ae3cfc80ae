"""The LoRA adapters of one engine, told apart by what their files hold."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvdepot.vllm.bounded_read import BoundedRead
from kvdepot.vllm.files import Signature, content, files_in, signature
from kvdepot.vllm.identity import within

logger = logging.getLogger(__name__)

MAX_READ_BYTES = 64 << 20  # read in less time than vLLM takes to load it
MAX_ADAPTER_BYTES = 512
READ_SECONDS = 0.5  # a mount that hangs costs the scheduler so much, once
GOOD_FOR_SECONDS = 0.01


class _Unsure(Exception):
    """Why it is not known what an adapter's KV is computed with."""


@dataclass(slots=True)
class _Adapter:
    """What an adapter's files were when they were looked at, and what the engine has loaded."""

    files: Signature
    on_disk: str
    loaded: str
    checked_at: float


class Adapters:
    """Knows which adapter a request is computed with, as far as the scheduler's process can tell.

    vLLM loads an adapter when it is first used, and again when a request says ``load_inplace``. Files that changed in
    between are not loaded, or not by all: such an adapter's KV is not cached.
    """

    def __init__(self, settings: str = "") -> None:
        self._settings = settings
        self._adapters: dict[tuple[int, str, str], _Adapter] = {}
        self._contents: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._reading = BoundedRead[tuple[Signature, str]](READ_SECONDS)
        self._complaints: set[tuple[str, str]] = set()

    def identity_of(self, lora: Any) -> str | None:
        """The adapter's identity, empty for no adapter; None: its KV can't be told from another one's."""
        if lora is None:
            return ""
        try:
            return self._loaded(lora)
        except (OSError, ValueError, _Unsure) as error:
            self._complain(lora, str(error))
            return None

    def has_changed(self, lora: Any) -> bool:
        """Whether the engine has computed with other weights of this name, so that its own prefix cache may have those.

        vLLM's block hashes cover an adapter's name and path only.
        """
        return lora is not None and len(self._contents[_name(lora)]) > 1

    def emptied(self) -> None:
        """vLLM has emptied its own prefix cache: nothing of replaced weights is left in it."""
        self._contents.clear()

    def _loaded(self, lora: Any) -> str:
        key, now = (lora.lora_int_id, *_name(lora)), time.monotonic()
        adapter = self._adapters.get(key)
        if adapter is None or now >= adapter.checked_at + GOOD_FOR_SECONDS:
            known = adapter
            files, on_disk = self._reading.call(lambda: self._look(lora, known))
            loaded = adapter.loaded if adapter is not None and not lora.load_inplace else on_disk
            adapter = self._adapters[key] = _Adapter(files, on_disk, loaded, now)
        if adapter.on_disk != adapter.loaded:
            if not lora.load_inplace:
                raise _Unsure("its files have changed since it was loaded; load it in place, or under another name")
            adapter.loaded = adapter.on_disk
        self._contents[_name(lora)].add(adapter.loaded)
        return adapter.loaded

    def _look(self, lora: Any, known: _Adapter | None) -> tuple[Signature, str]:
        """The adapter's files and identity; they are read if they are not those that are known."""
        files = files_in(_folder(lora.lora_path), lambda name: name.startswith("adapter_"))
        if not files:
            raise _Unsure("there are no adapter_* files")
        found = signature(files)
        if known is not None and found == known.files:
            return found, known.on_disk
        contents = [content(path, MAX_READ_BYTES) for path in files]
        if signature(files) != found:
            raise _Unsure("its files are being written")
        facts = [self._settings, getattr(lora, "is_3d_lora_weight", False), contents]
        digest = hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
        name = within(f"{lora.lora_name}={lora.lora_path}", MAX_ADAPTER_BYTES - len(digest) - 1)
        return found, f"{name}#{digest}"

    def _complain(self, lora: Any, complaint: str) -> None:
        if (lora.lora_name, complaint) not in self._complaints:  # once, and not for each request
            self._complaints.add((lora.lora_name, complaint))
            logger.warning("KV of the adapter %s (%s) is not cached: %s", lora.lora_name, lora.lora_path, complaint)


def _name(lora: Any) -> tuple[str, str]:
    """What vLLM's block hashes have of an adapter."""
    return lora.lora_name, lora.lora_path


def _folder(lora_path: str) -> Path:
    """Where vLLM reads an adapter: a folder of this machine, or one of Hugging Face's cache.

    Raises:
        _Unsure: there is neither.
    """
    folder = Path(lora_path).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(lora_path, "adapter_config.json")
    except (ImportError, ValueError):
        found = None
    if isinstance(found, str):
        return Path(found).parent
    raise _Unsure("its folder can't be read")
