"""`explain` says which chunk of a prompt is missing, since when and why, and what a session remembers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvdepot import hash_prefix
from tests.e2e.cli.attached import CHUNK_SIZE, Attached, attached, plain

PROMPT = " ".join(map(str, range(64)))


@pytest.fixture(scope="module")
def running() -> Iterator[Attached]:
    with attached() as found:
        yield found


@pytest.fixture
def depot(running: Attached) -> Attached:
    """An empty depot."""
    running.client.clear_cache(force=True)
    return running


def test_a_prompt_from_a_file_or_standard_input_is_explained(depot: Attached, tmp_path: Path) -> None:
    depot.store(2)
    (tmp_path / "prompt.json").write_text(json.dumps({"prompt_token_ids": list(range(64))}))
    of_file = depot.run("explain", str(tmp_path / "prompt.json"), "--instance", "pod-1")
    assert of_file.exit_code == 0, of_file.output
    assert of_file.stdout.splitlines()[:3] == [
        "pod-1, llama: 32 of 64 tokens match, 2 of 4 chunks of 16 tokens",
        "missing from token 32 to 47: never stored",
        "  rank 0: has 32 tokens; the chunk was never stored",
    ]
    for arguments in (["-"], []):
        assert depot.run("explain", *arguments, "--model", "llama", stdin=PROMPT).stdout == of_file.stdout
    answer = json.loads(depot.run("explain", "--model", "llama", "--json", stdin=PROMPT).stdout)
    assert (answer["matched_tokens"], answer["miss"]["reason"]) == (32, "MISS_REASON_NEVER_STORED")


def test_why_it_is_missing_and_where_else_it_is(depot: Attached) -> None:
    depot.store(4)
    other_salt = depot.run("explain", "--model", "llama", "--salt", "x", stdin=PROMPT).stdout
    assert "missing from token 0 to 15: unknown identity" in other_salt
    assert "64 tokens are stored with another salt" in other_salt
    depot.run("clear", "--yes")
    cleared = depot.run("explain", "--model", "llama", stdin=PROMPT).stdout
    assert "missing from token 0 to 15: cleared" in cleared
    assert "it was cleared 0." in cleared
    depot.store(40)
    refused = depot.run("explain", "--model", "llama", stdin=" ".join(map(str, range(640)))).stdout
    assert "a store of it was refused 0." in refused
    assert "no slot" in refused
    assert "hint: the engine tried to store it" in refused


def test_an_engine_that_stores_by_block_hashes_is_recognised(depot: Attached) -> None:
    hashes = [bytes([number] * 8) for number in range(2)]
    data = bytes(2 * depot.attachment.chunk_bytes)
    depot.attachment.store_inline("s", hash_prefix(hashes, CHUNK_SIZE), data)
    by_tokens = depot.run("explain", "--model", "llama", stdin=PROMPT).stdout
    assert "2 chunks of the model have keys of another kind" in by_tokens
    assert "hint: does the engine store by block hashes, as vLLM's connector does?" in by_tokens
    options = ("--model", "llama", "--hash-block-size", str(CHUNK_SIZE))
    by_hashes = depot.run("explain", *options, stdin=" ".join(each.hex() for each in hashes)).stdout
    of_small_blocks = " ".join(f"{number:016x} {each.hex()}" for number, each in enumerate(hashes))
    by_chunks = depot.run("explain", "--model", "llama", "--hash-block-size", "8", stdin=of_small_blocks).stdout
    assert by_chunks == by_hashes == "pod-1, llama: 32 of 32 tokens match, 2 of 2 chunks of 16 tokens\n"


def test_a_terminal_of_80_columns_has_whole_words(depot: Attached) -> None:
    shown = depot.run("explain", "--model", "llama", "--salt", "x", stdin=PROMPT, FORCE_COLOR="1", NO_COLOR="1")
    lines = plain(shown.stdout).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) > 4


def test_a_session_tells_its_last_miss_and_what_can_not_be_known(depot: Attached) -> None:
    depot.store(1)
    depot.attachment.lookup("request-1", range(16))
    hit = depot.run("explain", "--session", "request-1").stdout
    assert "every lookup matched all whole chunks of its prompt" in hit
    depot.attachment.lookup("request-1", [*range(16), *[9] * 48])
    depot.attachment.end_session("request-1")
    missed = depot.run("explain", "--session", "request-1", "--instance", "pod-1").stdout
    assert "request-1 of pod-1, llama: ended by EndSession" in missed
    assert "2 of 2 lookups hit; 32 of 80 tokens matched" in missed
    assert "never stored at token 16: the chunk was never stored" in missed
    assert "a session keeps no tokens: whether the chunk is there now is not known" in missed
    totals = json.loads(depot.run("explain", "--session", "request-1", "--json").stdout)["session"]["totals"]
    assert totals["last_miss"]["at_token"] == 16
    assert depot.run("explain", "--session", "absent").exit_code == 1
    assert "is remembered" in depot.run("explain", "--session", "absent").stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "exit_code", "words"),
    [
        (["--model", "llama"], "", 2, "standard input: it is empty"),
        (["--model", "llama"], "1 2 x", 2, "standard input: token 2 is x; a token id is a number from 0"),
        (["--model", "llama"], "[1, true]", 2, "token 1 is True"),
        (["--model", "llama", "/nothing/there"], "", 2, "/nothing/there: No such file"),
        ([], "1", 2, "give --instance or --model"),
        (["--instance", "a", "--model", "b"], "1", 2, "give --instance or --model"),
        (["--session", "s", "--model", "b"], "", 2, "give it with --instance alone"),
        (["--model", "qwen"], "1", 1, "no instance of model 'qwen' is attached"),
        (["--instance", "pod-9"], "1", 1, "no rank of instance 'pod-9' is attached"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    depot: Attached, arguments: list[str], stdin: str, exit_code: int, words: str
) -> None:
    result = depot.run("explain", *arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
