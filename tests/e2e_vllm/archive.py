"""A second cache for a MultiConnector with ours: files of whole prompts, one for each worker.

Its scheduler learns from the workers' handshake where their files are. Without the handshake it finds nothing.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorTransferResults,
    SupportsHMA,
)

from tests.e2e_vllm.engines import ARCHIVE_ASYNC, ARCHIVE_LOAD, ARCHIVE_LOG, ARCHIVE_SAVE


@dataclass
class Folder(KVConnectorHandshakeMetadata):
    """The handshake: where a worker's files are."""

    path: str


@dataclass(frozen=True)
class Move:
    """Blocks of a request that a worker writes to its file, or reads from it. `first` is their place in the file."""

    request_id: str
    name: str
    first: int
    block_ids: list[int]


@dataclass
class Moves(KVConnectorMetadata):
    saves: list[Move] = field(default_factory=list)
    loads: list[Move] = field(default_factory=list)


class ArchiveConnector(KVConnectorBase_V1, SupportsHMA):
    """Saves the whole blocks of a prompt when its request ends, if its parameters ask for that.

    It loads within the step, or if `archive.async` is set, before it. A prompt is found unless its parameters say
    otherwise. Each load is a line in the file `archive.log`.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._extra = self._kv_transfer_config.kv_connector_extra_config
        self._num_workers = vllm_config.parallel_config.world_size
        self._block_size = vllm_config.cache_config.block_size
        self._folders: list[Path] = []  # of all workers; a worker has its own only
        self._moves = Moves()
        self._num_local: dict[str, int] = {}
        self._saved: set[str] = set()
        self._loaded: set[str] = set()

    # In the workers.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._kv_caches = kv_caches
        self._folders = [Path(tempfile.mkdtemp(prefix="archive-", dir=Path(self._extra[ARCHIVE_LOG]).parent))]

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return Folder(str(self._folders[0]))

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        moves = self._get_connector_metadata()
        assert isinstance(moves, Moves)
        for move in moves.loads:
            saved = torch.load(self._folders[0] / move.name)
            for name, cache in self._kv_caches.items():
                cache[move.block_ids] = saved[name][move.first : move.first + len(move.block_ids)]
            self._loaded.add(move.request_id)

    def wait_for_save(self) -> None:
        moves = self._get_connector_metadata()
        assert isinstance(moves, Moves)
        for move in moves.saves:
            new = self._folders[0] / f"{move.name}.new"
            torch.save({name: cache[move.block_ids] for name, cache in self._kv_caches.items()}, new)
            new.rename(self._folders[0] / move.name)
            self._saved.add(move.request_id)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        saved, loaded, self._saved, self._loaded = self._saved, self._loaded, set(), set()
        return KVConnectorTransferResults(
            finished_sending=saved, finished_recving=loaded if self._extra[ARCHIVE_ASYNC] else set()
        )

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        pass

    # In the scheduler.

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        assert sorted(metadata) == list(range(self._num_workers)), f"a handshake of the ranks {sorted(metadata)}"
        for payload in metadata.values():
            assert isinstance(payload, Folder), f"a handshake of {type(payload).__module__}"
            self._folders.append(Path(payload.path))

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        self._num_local[request.request_id] = num_computed_tokens
        if not self._params(request).get(ARCHIVE_LOAD, True):
            return 0, False
        for number in range((request.num_tokens - 1) // self._block_size, 0, -1):
            name = request.block_hashes[number - 1].hex()
            if self._folders and all((folder / name).exists() for folder in self._folders):
                num_tokens = max(0, number * self._block_size - num_computed_tokens)
                return num_tokens, bool(num_tokens) and self._extra[ARCHIVE_ASYNC]
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if not num_external_tokens:
            return
        (block_ids,) = blocks.get_block_ids()
        first = self._num_local[request.request_id] // self._block_size
        end = first + num_external_tokens // self._block_size
        name = request.block_hashes[end - 1].hex()
        self._moves.loads.append(Move(request.request_id, name, first, block_ids[first:end]))
        with Path(self._extra[ARCHIVE_LOG]).open("a") as log:
            log.write(json.dumps([request.num_tokens, num_external_tokens]) + "\n")

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        moves, self._moves = self._moves, Moves()
        return moves

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Keep the blocks until all workers have saved them."""
        self._num_local.pop(request.request_id, None)
        number = request.num_prompt_tokens // self._block_size
        if not self._params(request).get(ARCHIVE_SAVE, False) or not number:
            return False, None
        name = request.block_hashes[number - 1].hex()
        self._moves.saves.append(Move(request.request_id, name, 0, block_ids[0][:number]))
        return True, {"archive.name": name}

    def _params(self, request: Any) -> dict[str, Any]:
        return request.kv_transfer_params or {}
