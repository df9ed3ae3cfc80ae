"""Identifies the LoRA adapters of one engine by the contents of their files."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvdepot.connector.bounded_read import BoundedRead
from kvdepot.connector.identity import bounded_text
from kvdepot.connector.model_files import Signature, content, files_in, hub_folder, signature

logger = logging.getLogger(__name__)

MAX_READ_BYTES = 64 << 20  # reading this takes less time than vLLM takes to load it
MAX_ADAPTER_BYTES = 512
READ_SECONDS = 0.5  # a mount that hangs costs the scheduler this much, once
VALID_SECONDS = 0.01


class _UnknownWeights(Exception):
    """The connector can't know which weights an adapter's KV is computed with. The message says why."""


@dataclass(slots=True)
class _Adapter:
    """An adapter's files when they were checked last, and the identity that the engine has loaded."""

    files: Signature
    on_disk: str
    loaded: str
    checked_at: float


class Adapters:
    """The adapters of an engine, and their weights, as far as the scheduler's process can find out.

    vLLM loads an adapter when it is first used, and again when a request says `load_inplace`. If files changed in
    between, no worker has loaded them, or only some have: KV of such an adapter is not cached.
    """

    def __init__(self, settings: str = "") -> None:
        self._settings = settings
        self._adapters: dict[tuple[int, str, str], _Adapter] = {}
        self._identities: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._reading = BoundedRead[tuple[Signature, str]](READ_SECONDS)
        self._logged: set[tuple[str, str]] = set()

    def of_request(self, lora: Any) -> RequestAdapter | None:
        """Return the adapter of a new request. None: it has none."""
        return RequestAdapter(self, lora, self.identity_of(lora)) if lora is not None else None

    def identity_of(self, lora: Any) -> str | None:
        """Return the identity of the adapter's weights. None: the engine may have loaded others."""
        try:
            return self._loaded(lora)
        except (OSError, ValueError, _UnknownWeights) as error:
            if (lora.lora_name, str(error)) not in self._logged:  # once, and not for each request
                self._logged.add((lora.lora_name, str(error)))
                logger.warning("KV of the adapter %s (%s) is not cached: %s", lora.lora_name, lora.lora_path, error)
            return None

    def was_replaced(self, lora: Any) -> bool:
        """Return whether the engine has computed with other weights of this name. Its own cache may then hold such KV.

        vLLM's block hashes cover an adapter's name and path only.
        """
        return len(self._identities[_name(lora)]) > 1

    def engine_cache_emptied(self) -> None:
        """Forget which weights were replaced: vLLM has emptied its own prefix cache."""
        self._identities.clear()

    def _loaded(self, lora: Any) -> str:
        key, now = (lora.lora_int_id, *_name(lora)), time.monotonic()
        adapter = self._adapters.get(key)
        if adapter is None or now >= adapter.checked_at + VALID_SECONDS:
            known = adapter
            files, on_disk = self._reading.call(lambda: self._read(lora, known))
            loaded = adapter.loaded if adapter is not None and not lora.load_inplace else on_disk
            adapter = self._adapters[key] = _Adapter(files, on_disk, loaded, now)
        if adapter.on_disk != adapter.loaded:
            if not lora.load_inplace:
                raise _UnknownWeights(
                    "its files have changed since it was loaded; load it in place, or under another name"
                )
            adapter.loaded = adapter.on_disk
        self._identities[_name(lora)].add(adapter.loaded)
        return adapter.loaded

    def _read(self, lora: Any, known: _Adapter | None) -> tuple[Signature, str]:
        """Return the adapter's files and identity. Read the files only if they differ from the known ones."""
        files = files_in(_folder(lora.lora_path), lambda name: name.startswith("adapter_"))
        if not files:
            raise _UnknownWeights("there are no adapter_* files")
        found = signature(files)
        if known is not None and found == known.files:
            return found, known.on_disk
        contents = [content(path, MAX_READ_BYTES) for path in files]
        if signature(files) != found:
            raise _UnknownWeights("its files are being written")
        facts = [self._settings, getattr(lora, "is_3d_lora_weight", False), contents]
        digest = hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
        name = bounded_text(f"{lora.lora_name}={lora.lora_path}", MAX_ADAPTER_BYTES - len(digest) - 1)
        return found, f"{name}#{digest}"


@dataclass(frozen=True, slots=True)
class RequestAdapter:
    """The adapter of one request; implements `kvdepot.connector.request_state.Adapter`."""

    adapters: Adapters
    lora: Any
    identity: str | None

    def is_current(self) -> bool:
        """Return whether the engine still computes with the weights of the request's arrival."""
        return self.identity is not None and self.adapters.identity_of(self.lora) == self.identity

    def was_replaced(self) -> bool:
        """Return whether vLLM's own prefix cache may hold KV of other weights under this name."""
        return self.adapters.was_replaced(self.lora)


def _name(lora: Any) -> tuple[str, str]:
    """Return the part of an adapter that vLLM's block hashes cover."""
    return lora.lora_name, lora.lora_path


def _folder(lora_path: str) -> Path:
    """Return where vLLM reads an adapter: a folder of this machine, or one of Hugging Face's cache."""
    folder = Path(lora_path).expanduser()
    if folder.is_dir():
        return folder
    if (cached := hub_folder(lora_path, "adapter_config.json")) is not None:
        return cached
    raise _UnknownWeights("its folder can't be read")
