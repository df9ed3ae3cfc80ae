"""A connector that records how vLLM calls its scheduler; unit tests replay the recordings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvdepot.connector.commands import BlockIds, StepCommands, WorkerReport
from kvdepot.connector.lookups import PendingLookup
from kvdepot.connector.scheduler import ConnectorScheduler
from tests.e2e_vllm.engines import RECORD_VARIABLE
from tests.e2e_vllm.faulty import FaultyConnector


class RecordingConnector(FaultyConnector):
    """Every second load fails, so that a recording has failed loads."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self._is_scheduler:
            self._scheduler = _Recorder(self._scheduler, Path(os.environ[RECORD_VARIABLE]))  # type: ignore[assignment]


class _Recorder:
    """Passes calls on, and writes a line for each: the call, its arguments, its result."""

    def __init__(self, scheduler: ConnectorScheduler, path: Path) -> None:
        self._scheduler = scheduler
        self._file = path.open("w", buffering=1)
        self._write("settings", settings=asdict(scheduler._settings))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def arrived(self, request: Any) -> None:
        self._scheduler.arrived(request)
        self._write("arrived", request=_facts(request))

    def matched_tokens(self, request: Any, num_computed_tokens: int) -> int | None:
        lookup = self._scheduler._requests[request.request_id].lookup
        before = _answer(lookup)
        result = self._scheduler.matched_tokens(request, num_computed_tokens)
        answer = before if result is None else _answer(lookup)  # it may have come meanwhile
        facts = _facts(request)
        self._write("matched_tokens", request=facts, computed=num_computed_tokens, answer=answer, result=result)
        return result

    def allocated(self, request: Any, block_ids: BlockIds, num_external_tokens: int) -> None:
        self._scheduler.allocated(request, block_ids, num_external_tokens)
        self._write("allocated", request=_facts(request), block_ids=block_ids, external=num_external_tokens)

    def step(
        self,
        num_scheduled_tokens: Mapping[str, int],
        tables: Callable[[str], BlockIds | None],
        new_blocks: Sequence[tuple[str, BlockIds, bool]],
        *,
        may_store: bool,
    ) -> StepCommands:
        commands = self._scheduler.step(num_scheduled_tokens, tables, new_blocks, may_store=may_store)
        if not num_scheduled_tokens and not commands.loads:  # vLLM steps on while it waits
            return commands
        self._write(
            "step",
            requests=[_facts(self._scheduler._requests[request_id].request) for request_id in num_scheduled_tokens],
            scheduled=num_scheduled_tokens,
            tables={request_id: tables(request_id) for request_id in num_scheduled_tokens},
            new_blocks=new_blocks,
            may_store=may_store,
            commands=asdict(commands),
        )
        return commands

    def reported(self, report: WorkerReport) -> None:
        self._scheduler.reported(report)
        self._write(
            "reported",
            done=list(report.done.items()),
            failed=list(report.failed),
            partial=list(report.partial.items()),
            chunk_sizes=list(report.chunk_sizes.items()),
        )

    def finished(self, request: Any) -> None:
        self._scheduler.finished(request)
        self._write("finished", request=_facts(request))

    def _write(self, call: str, **facts: Any) -> None:
        self._file.write(json.dumps({"call": call, **facts}, default=_plain, separators=(",", ":")) + "\n")


def _answer(lookup: PendingLookup | None) -> tuple[int, tuple[str, ...]] | None:
    return None if lookup is None or lookup.matched_tokens is None else (lookup.matched_tokens, lookup.leases)


def _facts(request: Any) -> dict[str, Any]:
    return {
        "id": request.request_id,
        "num_tokens": request.num_tokens,
        "num_computed_tokens": request.num_computed_tokens,
        "block_hashes": list(request.block_hashes),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()[:16]  # enough to distinguish them
    raise TypeError(type(value).__name__)
