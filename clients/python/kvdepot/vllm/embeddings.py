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
    are_tokens = request.prompt_is_token_ids or [token_ids is not None] * len(embeddings)
    begin_with_zero = (embeddings[:, 0] == 0).tolist()  # few do, and only these are read as a whole
    doubtful = [position for position, is_token in enumerate(are_tokens) if is_token and token_ids[position] == 0]
    may_be_zeros = [
        position
        for position, (is_token, is_zero) in enumerate(zip(are_tokens, begin_with_zero, strict=True))
        if is_zero and not is_token
    ]
    if may_be_zeros:
        have_values = embeddings[may_be_zeros].any(axis=1).tolist()
        doubtful += [position for position, has in zip(may_be_zeros, have_values, strict=True) if not has]
    return min(doubtful, default=None)
