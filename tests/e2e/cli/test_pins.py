"""`pin`, `pins`, `unpin` and `prefetch`: what they print, and how they exit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvdepot import hash_prefix
from tests.e2e.cli.attached import CHUNK_SIZE, Attached, attached

PROMPT = " ".join(map(str, range(64)))
SLOT = "4 KiB"


@pytest.fixture(scope="module")
def running() -> Iterator[Attached]:
    with attached("--tenant-max-pinned", "0.25") as found:
        yield found


@pytest.fixture
def depot(running: Attached) -> Attached:
    """An empty depot without pins."""
    running.client.clear_cache(force=True)
    return running


def pin_id(output: str) -> str:
    (found,) = re.findall(r"^pin ([0-9a-f]{32})$", output, re.MULTILINE)
    return str(found)


def test_a_prompt_is_pinned_listed_and_unpinned(depot: Attached, tmp_path: Path) -> None:
    depot.store(2)
    (tmp_path / "prompt.json").write_text(json.dumps(list(range(64))))
    pinned = depot.run("pin", str(tmp_path / "prompt.json"), "--model", "llama", "--ttl", "90m")
    assert pinned.exit_code == 0, pinned.output
    assert re.match(r"pinned 32 tokens, 2 chunks, 8 KiB, until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", pinned.stdout)
    assert "not there from token 32 on, never stored" in pinned.stdout
    again = depot.run("pin", "--instance", "pod-1", stdin=PROMPT)
    assert again.stdout.startswith("pinned again 32 tokens") and pin_id(again.stdout) == pin_id(pinned.stdout)
    listed = depot.run("pins")
    header, row = listed.stdout.splitlines()
    assert header.split() == ["PIN", "TENANT", "MODEL", "TOKENS", "CHUNKS", "BYTES", "HITS", "ENDS", "IN"]
    assert row.split()[:7] == [pin_id(pinned.stdout), "llama", "32", "2", "8", "KiB", "0"]
    unpinned = depot.run("unpin", pin_id(pinned.stdout))
    assert (unpinned.exit_code, unpinned.stdout) == (0, "unpinned 32 tokens, after 0 hits\n")
    assert depot.run("pins").stdout == "none\n"
    gone = depot.run("unpin", pin_id(pinned.stdout))
    assert gone.exit_code == 1 and "it may have ended" in gone.output


def test_as_json_the_answers_are_those_of_the_depot(depot: Attached) -> None:
    depot.store(2)
    pinned = json.loads(depot.run("pin", "--model", "llama", "--fixed", "--json", stdin=PROMPT).stdout)
    assert pinned["pin"]["fixed_expire_time"] is True and pinned["matched_tokens"] == 32
    (listed,) = json.loads(depot.run("pins", "--json").stdout)
    assert listed["pin_id"] == pinned["pin"]["pin_id"]
    assert json.loads(depot.run("unpin", listed["pin_id"], "--json").stdout)["pin"]["num_chunks"] == 2


def test_nothing_to_pin_a_wrong_time_and_a_full_bound_are_said(depot: Attached) -> None:
    nothing = depot.run("pin", "--model", "llama", stdin=PROMPT)
    assert nothing.exit_code == 1 and nothing.stdout.startswith("not there from token 0 on")
    wrong = depot.run("pin", "--model", "llama", "--ttl", "soon", stdin=PROMPT)
    assert wrong.exit_code == 2 and "--ttl: 'soon' is not like 30s, 10m or 2h" in wrong.output
    unnamed = depot.run("pin", stdin=PROMPT)
    assert unnamed.exit_code == 2 and "give --instance or --model" in unnamed.output
    depot.store(10)
    full = depot.run("pin", "--model", "llama", stdin=" ".join(map(str, range(160))))
    assert full.exit_code == 1 and "the pin needs 40960 bytes more of L1" in full.output


def test_hashes_of_blocks_are_pinned_as_the_engine_stored_them(depot: Attached) -> None:
    hashes = [bytes([number] * 8) for number in range(4)]
    data = bytes(2 * depot.attachment.chunk_bytes)
    depot.attachment.store_inline("s", hash_prefix(hashes[1::2], CHUNK_SIZE), data)
    options = ("--model", "llama", "--hash-block-size", str(CHUNK_SIZE // 2))
    pinned = depot.run("pin", *options, stdin=" ".join(each.hex() for each in hashes))
    assert pinned.stdout.startswith("pinned 32 tokens, 2 chunks"), pinned.output


def test_a_prefetch_says_what_is_there(depot: Attached) -> None:
    depot.store(2)
    answer = depot.run("prefetch", "--model", "llama", stdin=PROMPT)
    assert answer.exit_code == 0, answer.output
    there, missing = answer.stdout.splitlines()
    assert there == "32 tokens in L1, 0 on their way"
    assert missing.startswith("not there from token 32 on, ")
    assert json.loads(depot.run("prefetch", "--model", "llama", "--json", stdin=PROMPT).stdout)["l1_tokens"] == 32
