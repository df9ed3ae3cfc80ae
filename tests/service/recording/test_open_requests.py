"""A request is one line, in the order of lookups, and says nothing of its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from service.depot.recording import LookedUp, RequestEnded, Seen, Stored
from service.l1.keys import Namespace, Prefix, chunk_keys
from service.recording import open_requests
from service.recording.open_requests import HOLD_SECONDS, OpenRequests

BLOCK_TOKENS = 4
START = 1_000.0
NAMESPACE = Namespace(b"n" * 32)
OTHER_NAMESPACE = Namespace(b"o" * 32)


def prefix(tokens: Sequence[int]) -> Prefix:
    return Prefix(token_ids=np.array(tokens, dtype=np.uint32))


def hashes(names: Iterable[bytes], hash_block_size: int = 2) -> Prefix:
    token_ids = np.array([], dtype=np.uint32)
    return Prefix(token_ids=token_ids, block_hashes=tuple(names), hash_block_size=hash_block_size)


def looked_up(request: int, prompt: Prefix, *, before: int = 0, seconds: float = 0.0, **fields: Any) -> LookedUp:
    given = {"namespace": NAMESPACE, "chunk_size": BLOCK_TOKENS, "tenant": "", "model_name": "model", **fields}
    return LookedUp(request=request, request_before=before, monotonic=START + seconds, prefix=prompt, **given)


def opened(*seen: Seen) -> OpenRequests:
    requests = OpenRequests(START)
    take(requests, *seen)
    return requests


def take(requests: OpenRequests, *seen: Seen) -> None:
    for each in seen:
        for _ in requests.take(each):
            pass


def parsed(lines: Iterable[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def lines_of(*seen: Seen) -> list[dict[str, Any]]:
    return parsed(opened(*seen).all_lines())


def test_a_line_has_an_id_for_each_block_of_the_prompt_and_one_for_the_rest() -> None:
    first, second = lines_of(
        looked_up(1, prefix(range(10)), seconds=0.25), looked_up(2, prefix([*range(8), 99, 98]), seconds=1.0)
    )
    assert first["hash_ids"] == [0, 1, 2]
    assert second["hash_ids"] == [0, 1, 3]
    assert (first["timestamp"], second["timestamp"]) == (250, 1000)
    assert (first["input_length"], first["output_length"], first["block_tokens"]) == (10, 0, BLOCK_TOKENS)
    assert first["recording"] == second["recording"]
    assert "output_hash_ids" not in first


def test_an_equal_rest_behind_another_prefix_is_another_block() -> None:
    first, second = lines_of(looked_up(1, prefix([0, 1, 2, 3, 9])), looked_up(2, prefix([0, 1, 2, 4, 9])))
    assert not set(first["hash_ids"]) & set(second["hash_ids"])


@pytest.mark.parametrize("steps", [[14], [10, 14], [9, 14, 12]])
def test_blocks_stored_behind_the_prompt_are_those_of_the_next_turn(steps: list[int]) -> None:
    tokens = list(range(14))
    stores = [Stored(request=1, prefix=prefix(tokens[:end])) for end in steps]
    first, second = lines_of(looked_up(1, prefix(tokens[:6])), *stores, looked_up(2, prefix(tokens), before=1))
    assert (first["input_length"], first["output_length"]) == (6, 8)
    assert [*first["hash_ids"][:1], *first["output_hash_ids"]] == second["hash_ids"][:3]


def test_a_store_of_a_part_of_the_prompt_is_no_output() -> None:
    [line] = lines_of(looked_up(1, prefix(range(12))), Stored(request=1, prefix=prefix(range(8))))
    assert (line["output_length"], "output_hash_ids" in line) == (0, False)


def test_a_store_without_a_lookup_is_no_request() -> None:
    assert lines_of(Stored(request=1, prefix=prefix(range(8)))) == []


def test_block_hashes_have_blocks_as_tokens_have() -> None:
    names = [b"a", b"b", b"c", b"d", b"e", b"f"]
    first, second = lines_of(
        looked_up(1, hashes(names[:3])),
        Stored(request=1, prefix=hashes(names)),
        looked_up(2, hashes(names), before=1),
    )
    assert (first["input_length"], first["output_length"]) == (6, 6)
    assert [*first["hash_ids"][:1], *first["output_hash_ids"]] == second["hash_ids"]
    assert len(second["hash_ids"]) == 3


def test_models_and_tenants_share_no_blocks_and_have_small_numbers() -> None:
    tokens = prefix(range(8))
    lines = lines_of(
        looked_up(1, tokens, tenant="red"),
        looked_up(2, tokens, namespace=OTHER_NAMESPACE, tenant="blue"),
        looked_up(3, tokens, namespace=OTHER_NAMESPACE, tenant="blue", model_name="other"),
    )
    assert [(line["tenant"], line["model"]) for line in lines] == [(0, 0), (1, 0), (1, 1)]
    assert not set(lines[0]["hash_ids"]) & set(lines[1]["hash_ids"])


def test_a_request_that_asks_again_has_one_line_with_its_longest_prompt() -> None:
    [line] = lines_of(
        looked_up(1, prefix(range(4))),
        looked_up(1, prefix(range(8)), before=1, seconds=5),
        looked_up(1, prefix(range(4)), before=1, seconds=6),
    )
    assert (line["timestamp"], line["input_length"], len(line["hash_ids"])) == (0, 8, 2)


def test_lines_wait_for_the_ends_of_those_before_them() -> None:
    requests = opened(looked_up(1, prefix(range(4))), looked_up(2, prefix(range(5))), RequestEnded(request=2))
    assert parsed(requests.lines(START)) == []
    take(requests, RequestEnded(request=1))
    assert [line["input_length"] for line in parsed(requests.lines(START))] == [4, 5]
    assert len(requests) == 0


def test_the_next_request_of_a_session_ends_the_one_before() -> None:
    requests = opened(looked_up(1, prefix(range(4))), looked_up(2, prefix(range(5)), before=1))
    assert [line["input_length"] for line in parsed(requests.lines(START))] == [4]


def test_a_line_does_not_wait_for_ever_and_is_written_once() -> None:
    requests = opened(looked_up(1, prefix(range(4))), looked_up(2, prefix(range(5)), seconds=1))
    assert requests.next_due() == START + HOLD_SECONDS
    assert [line["input_length"] for line in parsed(requests.lines(START + HOLD_SECONDS))] == [4]
    take(requests, looked_up(1, prefix(range(9)), before=1), Stored(request=1, prefix=prefix(range(12))))
    take(requests, RequestEnded(request=1))
    assert [line["input_length"] for line in parsed(requests.all_lines())] == [5]
    assert requests.next_due() is None


def test_lines_that_wait_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_requests, "MAX_HELD_IDS", 10)
    requests = OpenRequests(START)
    num_lines = 0
    for number in range(1, 100):
        tokens = prefix(range(4 * (number % 5 + 1)))
        output = prefix(range(4 * (number % 5 + 3)))
        take(requests, looked_up(number, tokens), Stored(request=number, prefix=output))
        num_lines += len(list(requests.lines(START)))
        assert requests._num_held_ids == sum(len(each.ids) + len(each.output_ids) for each in requests._open.values())
        assert requests._num_held_ids <= 10
    assert num_lines + len(requests) == 99


def test_a_very_long_prompt_is_recorded_as_far_as_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_requests, "MAX_BLOCKS", 3)
    long = prefix(range(50))
    [line] = lines_of(looked_up(1, long), Stored(request=1, prefix=prefix(range(60))))
    assert (line["input_length"], line["hash_ids"]) == (12, [0, 1, 2])
    assert "output_hash_ids" not in line


def test_two_recordings_of_the_same_traffic_write_the_same_lines_under_two_names() -> None:
    seen = [looked_up(1, prefix(range(0, 160, 10))), looked_up(2, prefix(range(6)))]
    lines = [lines_of(*seen), lines_of(*seen)]
    recordings = [{line.pop("recording") for line in each} for each in lines]
    assert lines[0] == lines[1]
    assert recordings[0] != recordings[1]
    assert all(len(each) == 1 for each in recordings)


def test_a_line_says_nothing_of_tokens_keys_and_names() -> None:
    tokens = prefix([771_771, 882_882, 993_993, 114_114])
    requests = opened(looked_up(1, tokens, tenant="acme", model_name="secret-model"))
    [line] = requests.all_lines()
    assert not any(secret.hex()[:8] in line for secret in (NAMESPACE, *chunk_keys(NAMESPACE, tokens, BLOCK_TOKENS)))
    assert not any(str(token) in line for token in tokens.token_ids)
    assert not any(name in line for name in ("acme", "secret-model"))
    found = json.loads(line)
    assert set(found) == {
        *("timestamp", "input_length", "output_length", "hash_ids"),
        *("block_tokens", "model", "tenant", "recording"),
    }
    assert (found["hash_ids"], found["model"], found["tenant"]) == ([0], 0, 0)


def test_each_line_has_the_blocks_of_its_instance() -> None:
    short, long = lines_of(
        looked_up(1, prefix(range(16))),
        looked_up(2, hashes([b"one ", b"two "], hash_block_size=8), namespace=OTHER_NAMESPACE, chunk_size=8),
    )
    assert (short["block_tokens"], len(short["hash_ids"]), short["input_length"]) == (BLOCK_TOKENS, 4, 16)
    assert (long["block_tokens"], len(long["hash_ids"]), long["input_length"]) == (8, 2, 16)
