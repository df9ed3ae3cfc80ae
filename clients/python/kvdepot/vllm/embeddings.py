"""Prompt embeddings: how much of such a prompt vLLM's block hashes name without doubt."""

from __future__ import annotations

from typing import Any


def named_tokens(request: Any) -> int | None:
    """Return the number of positions before the first one that another prompt with equal hashes may compute otherwise.

    None: all are named. vLLM's block hashes cover the token ids and the embeddings of all positions, but not which
    of both counts at a position. vLLM hashes 0 as the token id of an embedding, and its server has zeros as the
    embedding of a token. So only the token 0 and an embedding of zeros can be taken for each other.
    """
    embeddings = request.prompt_embeds
    if embeddings is None:
        return None
    token_ids = request.prompt_token_ids
    count = len(embeddings)
    are_tokens = request.prompt_is_token_ids or [token_ids is not None] * count
    not_zeros = embeddings.any(axis=1).tolist()
    for position, (is_token, has_values) in enumerate(zip(are_tokens, not_zeros, strict=True)):
        if (token_ids[position] == 0) if is_token else not has_values:
            return position
    return None
