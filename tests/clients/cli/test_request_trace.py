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
    ],
)
def test_a_line_that_is_not_a_request_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    trace = write(tmp_path / "trace.jsonl", '{"hash_ids": [0]}', line)
    with pytest.raises(BadTrace) as raised:
        read_trace(trace)
    assert f"{trace}:2: " in str(raised.value)
    assert complaint in str(raised.value)


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
