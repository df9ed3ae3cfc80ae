"""Replays of a real vLLM's calls: the same calls must lead to the same answers and commands.

``python -m tests.e2e_vllm.record`` wrote them, of a model of full attention and of one with sliding windows: a
prompt that is computed in two steps and stored, found again with and without a part that vLLM still has, loads that
fail, one that ends at a damaged chunk, preemptions, an abort.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.commands import BlockIds, WorkerReport
from kvdepot.connector.lookups import PendingLookup
from kvdepot.connector.request_limits import RequestParameters
from kvdepot.connector.scheduler import ConnectorScheduler
from kvdepot.connector.scheduler_settings import SchedulerSettings
from kvdepot.v1.cache_pb2 import Prefix
from kvdepot.vllm.adapters import Adapters
from kvdepot.vllm.engine_values import VllmBlockReferences, request_traits
from tests.fakes.vllm import LookupClient, Pool

RECORDINGS = sorted((Path(__file__).parent / "recorded").glob("*.jsonl"))
every_recording = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)


def calls_of(recording: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in recording.read_text().splitlines()]


def plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value.tolist()


@dataclass
class RecordedRequest:
    request_id: str
    num_tokens: int = 0
    num_computed_tokens: int = 0
    num_prompt_tokens: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    skip_reading_prefix_cache: bool = False
    cache_salt: str | None = None
    all_token_ids: tuple[int, ...] = ()
    lora_request: None = None
    trace_headers: None = None
    prompt_embeds: None = None


class RecordedAnswers(LookupClient):
    """Answers lookups as the depot did."""

    def __init__(self) -> None:
        super().__init__(monotonic)
        self.by_session: dict[str, PendingLookup] = {}

    def begin(
        self,
        session_id: str,
        prefix: Prefix,
        computed_tokens: int,
        parent: str,
        prefill_rate: float | None,
        will_continue: bool | None,
    ) -> PendingLookup:
        lookup = self.by_session[session_id] = super().begin(
            session_id, prefix, computed_tokens, parent, prefill_rate, will_continue
        )
        return lookup

    def take(self, session_id: str, answer: tuple[int, list[str]]) -> None:
        lookup = self.by_session[session_id]
        if lookup.matched_tokens is None:
            matched_tokens, leases = answer
            lookup.leases = tuple(leases)
            self.leased.update(leases)
            lookup.matched_tokens = matched_tokens


class Replay:
    """Makes the recorded calls."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.pool = Pool(settings["num_blocks"])
        self.lookup_client = RecordedAnswers()
        groups = tuple(CacheGroup(**group) for group in settings["groups"])
        waits = dict.fromkeys(("lookup_timeout_seconds", "lease_hold_seconds", "longest_transfer_seconds"), 3600.0)
        self.scheduler = ConnectorScheduler(
            SchedulerSettings(**{**settings, **waits, "groups": groups}),
            self.lookup_client,
            None,
            lambda request: request_traits(request, Adapters(), RequestParameters()),
        )
        self.scheduler.bind(VllmBlockReferences(self.pool))
        self.requests: dict[str, RecordedRequest] = {}

    def carry_out(self, call: str, facts: dict[str, Any]) -> None:
        for each in [facts["request"]] if "request" in facts else facts.get("requests", []):
            self._update(each)
        getattr(self, f"_{call}")(**facts)

    def _update(self, facts: dict[str, Any]) -> None:
        request = self.requests.setdefault(facts["id"], RecordedRequest(facts["id"]))
        request.num_tokens = facts["num_tokens"]
        request.num_computed_tokens = facts["num_computed_tokens"]
        request.block_hashes = [bytes.fromhex(each) for each in facts["block_hashes"]]

    def _arrived(self, request: dict[str, Any]) -> None:
        self.scheduler.arrived(self.requests[request["id"]])

    def _matched_tokens(self, request: dict[str, Any], computed: int, answer: Any, result: int | None) -> None:
        if answer is not None:
            self.lookup_client.take(request["id"], answer)
        assert self.scheduler.matched_tokens(self.requests[request["id"]], computed) == result

    def _allocated(self, request: dict[str, Any], block_ids: list[list[int]], external: int) -> None:
        self.scheduler.allocated(self.requests[request["id"]], tuple(block_ids), external)

    def _step(
        self,
        requests: list[dict[str, Any]],
        scheduled: dict[str, int],
        tables: dict[str, Any],
        new_blocks: list[Any],
        may_store: bool,
        commands: dict[str, Any],
    ) -> None:
        def table(request_id: str) -> BlockIds:
            return tuple(tables[request_id])

        blocks = [(request_id, tuple(block_ids), anew) for request_id, block_ids, anew in new_blocks]
        found = self.scheduler.step(scheduled, table, blocks, may_store=may_store)
        for store in commands["stores"]:
            store.setdefault("will_continue", None)  # older recordings do not have these
            store.setdefault("token_ids", [])
        assert json.loads(json.dumps(asdict(found), default=plain)) == commands

    def _reported(
        self,
        done: list[tuple[int, int]],
        failed: list[int],
        partial: list[tuple[int, int]],
        chunk_sizes: list[tuple[int, int]],
    ) -> None:
        report = WorkerReport(failed=set(failed), partial=dict(partial), chunk_sizes=dict(chunk_sizes))
        report.done.update(dict(done))
        self.scheduler.reported(report)

    def _finished(self, request: dict[str, Any]) -> None:
        self.scheduler.finished(self.requests[request["id"]])


@every_recording
def test_same_calls_lead_to_the_same_answers_and_commands_and_leave_nothing(recording: Path) -> None:
    settings, *calls = calls_of(recording)
    replay = Replay(settings["settings"])
    for number, facts in enumerate(calls):
        rest = dict(facts)
        try:
            replay.carry_out(rest.pop("call"), rest)
        except AssertionError as error:
            raise AssertionError(f"line {number + 2} of {recording.name}: {error}") from error
    assert replay.pool.kept == {}
    assert replay.lookup_client.leased == set()
    assert sorted(replay.lookup_client.ended_sessions) == sorted(replay.requests)


@every_recording
def test_recording_holds_what_it_is_to_show(recording: Path) -> None:
    calls = calls_of(recording)
    has_windows = len(calls[0]["settings"]["groups"]) > 1
    steps = [call["commands"] for call in calls if call["call"] == "step"]
    loads = [command for commands in steps for command in commands["loads"]]
    stores = [command for commands in steps for command in commands["stores"]]
    failed = {transfer_id for call in calls if call["call"] == "reported" for transfer_id in call["failed"]}
    loaded_twice = [call for call in calls if call["call"] == "allocated" and call["external"] == 0]
    anew: dict[str, int] = {}
    for call in calls:
        for request_id, _, begins in call.get("new_blocks", ()):
            anew[request_id] = anew.get(request_id, 0) + begins
    assert any(command["skip_tokens"] for command in loads)
    assert any(command["start_token"] for command in stores)
    assert failed & {command["transfer_id"] for command in loads}
    assert {command["transfer_id"] for command in loads} - failed
    assert has_windows != any(call["partial"] for call in calls if call["call"] == "reported")
    assert loaded_twice
    assert max(anew.values()) > 1, "no request began anew after a preemption"
    for commands in (loads, stores):
        assert has_windows == any(table["absent_blocks"] for command in commands for table in command["tables"])
