"""Token ids are read as a JSON list or as numbers, and whatever is no token id is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvdepot.cli.prompt_file import BadPrompt, block_hashes, read_text, token_ids


@pytest.mark.parametrize(
    "text", ["[1, 2, 3]", "1 2 3", "1,2,3", "1\n2\n3\n", '{"token_ids": [1, 2, 3]}', '{"prompt_token_ids": [1, 2, 3]}']
)
def test_lists_and_numbers_are_read(text: str) -> None:
    assert token_ids(text) == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("[]", "no JSON list of token ids"),
        ('{"tokens": [1]}', "no JSON list of token ids"),
        ("[1, 2", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[1.5]", "token 0 is 1.5"),
        ("[1, -2]", "token 1 is -2"),
        ("1 4294967296", "token 1 is 4294967296"),
        ("9" * 10_000, "token 0 is 9999"),
        ("hello", "token 0 is hello"),
        ("1 " * 4_194_305, "it has 4,194,305 token ids"),
    ],
)
def test_what_is_no_prompt_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadPrompt) as raised:
        token_ids(text)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 200


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadPrompt, match="no text"):
        read_text(str(tmp_path / "prompt"))


def test_block_hashes_are_hex() -> None:
    for text in ('["00ff", "0xAB"]', "00ff ab", '{"block_hashes": ["00ff", "ab"]}'):
        assert block_hashes(text) == [b"\x00\xff", b"\xab"]
    for text, words in (
        ("", "it is empty"),
        ("00f", "hash 0 is 00f"),
        ("[7]", "hash 0 is 7"),
        ("00 xy", "hash 1 is xy"),
    ):
        with pytest.raises(BadPrompt, match=words):
            block_hashes(text)
