"""A request of the engine."""

from __future__ import annotations

from collections.abc import Sequence

from kvdepot.connector import BlockHashes


class Request:
    """A prompt, and the tokens that the engine adds to it. Implements `kvdepot.connector.EngineRequest`.

    The KV of the first `num_computed_tokens` lies in `block_ids`, in the order of the tokens.
    """

    def __init__(self, request_id: str, prompt: Sequence[int], max_new_tokens: int, block_size: int) -> None:
        self.request_id = request_id
        self.num_prompt_tokens = len(prompt)
        self.max_new_tokens = max_new_tokens
        self.all_token_ids = list(prompt)
        self.num_computed_tokens = 0
        self.loaded_tokens = 0
        self.is_finished = False
        self.block_ids: list[int] = []
        self.num_reported_blocks = 0
        self._hashes = BlockHashes(block_size)
        self._hashes.update(prompt)

    def __repr__(self) -> str:
        return f"<Request {self.request_id}, {self.num_computed_tokens}/{self.num_tokens} tokens computed>"

    @property
    def num_tokens(self) -> int:
        """How many tokens it has, with those that the engine has added."""
        return len(self.all_token_ids)

    @property
    def block_hashes(self) -> list[bytes]:
        """The hashes of its whole blocks."""
        return self._hashes.values

    @property
    def new_tokens(self) -> list[int]:
        """The tokens that the engine has added."""
        return self.all_token_ids[self.num_prompt_tokens :]

    def add(self, token: int) -> None:
        """Add a token."""
        self.all_token_ids.append(token)
        self._hashes.update(self.all_token_ids)
