"""Traces are read strictly, and ids become tokens without a clash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvdepot.cli.request_trace import (
    BLOCK_TOKENS,
    MAX_HASH_ID,
    VOCABULARY_SIZE,
    BadTrace,
    Trace,
    read_trace,
    token_ids,
)

HASH_IDS = st.integers(0, 20) | st.integers(0, MAX_HASH_ID)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_reads_the_ids_of_every_request_in_order(tmp_path: Path) -> None:
    requests = [(0, 1, 2), (), (0, 9)]
    lines = (json.dumps({"timestamp": 0, "input_length": 1, "hash_ids": ids}) for ids in requests)
    trace = write(tmp_path / "trace.jsonl", *lines, "")
    assert read_trace(trace) == Trace(requests, [()] * 3, block_tokens=512)
    assert read_trace(trace, max_requests=2).requests == requests[:2]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", 'a list "hash_ids"'),
        ("{}", 'a list "hash_ids"'),
        ('{"hash_ids": "abc"}', 'a list "hash_ids"'),
        ('{"hash_ids": [1, "2"]}', "'2' in hash_ids"),
        ('{"hash_ids": [true]}', "True in hash_ids"),
        ('{"hash_ids": [-1]}', "-1 in hash_ids"),
        ('{"hash_ids": [4611686018427387904]}', "4611686018427387904 in hash_ids"),
        ('{"hash_ids": [1099511627776], "recording": "a"}', "from 0 to 2^40 - 1"),
        ('{"hash_ids": [0], "recording": 7}', '"recording" is not a text'),
        ('{"hash_ids": [0], "output_hash_ids": [-1]}', "-1 in output_hash_ids"),
        ('{"hash_ids": [0], "output_hash_ids": 7}', 'a list "output_hash_ids"'),
        ('{"hash_ids": [0], "block_tokens": 1}', "block_tokens is 1, not an integer from 2"),
        ('{"hash_ids": [0], "block_tokens": "256"}', "block_tokens is '256'"),
        ('{"hash_ids": [0], "block_tokens": 256}', "blocks of 256 tokens, after blocks of 512 tokens"),
        ('{"hash_ids": [0], "block_tokens": 512, "input_length": -1}', "input_length is -1"),
    ],
)
def test_a_line_that_is_not_a_request_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    trace = write(tmp_path / "trace.jsonl", '{"hash_ids": [0]}', line)
    with pytest.raises(BadTrace) as raised:
        read_trace(trace)
    assert f"{trace}:2: " in str(raised.value)
    assert complaint in str(raised.value)


def test_a_recording_has_its_own_blocks_without_the_short_one_and_its_answers(tmp_path: Path) -> None:
    lines = [
        {"input_length": 40, "hash_ids": [0, 1, 2], "output_hash_ids": [3], "block_tokens": 16, "recording": "a"},
        {"input_length": 64, "hash_ids": [0, 1, 3, 4], "block_tokens": 16, "recording": "a"},
        {"input_length": 16, "hash_ids": [0], "block_tokens": 16, "recording": "b"},
    ]
    read = read_trace(write(tmp_path / "trace.jsonl", *map(json.dumps, lines)))
    assert read.block_tokens == 16
    assert read.requests == [(0, 1), (0, 1, 3, 4), (1 << 40,)]
    assert read.outputs == [(3,), (), ()]


def test_a_trace_of_mooncake_keeps_its_last_block(tmp_path: Path) -> None:
    trace = write(tmp_path / "trace.jsonl", json.dumps({"input_length": 655, "hash_ids": [46, 47]}))
    assert read_trace(trace).requests == [(46, 47)]


def test_files_without_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="no requests"):
        read_trace(write(tmp_path / "empty.jsonl", ""))
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadTrace, match="not a text file"):
        read_trace(binary)


@given(st.lists(HASH_IDS, max_size=8), st.lists(HASH_IDS, max_size=8))
@example([0], [VOCABULARY_SIZE << 31])  # differ in the second token alone
@example([0], [VOCABULARY_SIZE])  # differ in the first token alone
def test_prompts_share_tokens_exactly_as_far_as_they_share_ids(first: list[int], second: list[int]) -> None:
    shorter = min(len(first), len(second))
    common = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    tokens, others = token_ids(tuple(first)), token_ids(tuple(second))
    assert len(tokens) == len(first) * BLOCK_TOKENS
    assert all(0 <= token < 2**31 for token in tokens)
    assert tokens[: common * BLOCK_TOKENS] == others[: common * BLOCK_TOKENS]
    for block in range(common, shorter):
        span = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
        assert (tokens[span] == others[span]) == (first[block] == second[block])


def test_one_model_of_a_recording_is_read_alone(tmp_path: Path) -> None:
    lines = [
        {"input_length": 32, "hash_ids": [0, 1], "block_tokens": 16, "model": 0, "recording": "a"},
        {"input_length": 400, "hash_ids": [2], "block_tokens": 400, "model": 1, "recording": "a"},
        {"input_length": 16, "hash_ids": [0], "block_tokens": 16, "model": 0, "recording": "a"},
    ]
    path = write(tmp_path / "trace.jsonl", *map(json.dumps, lines))
    with pytest.raises(BadTrace, match="choose one model with --model"):
        read_trace(path)
    assert read_trace(path, model=0) == Trace([(0, 1), (0,)], [(), ()], 16)
    assert read_trace(path, model=1) == Trace([(2,)], [()], 400)
    assert read_trace(path, max_requests=1, model=0).requests == [(0, 1)]
    with pytest.raises(BadTrace, match="no requests of model 2 in it"):
        read_trace(path, model=2)
