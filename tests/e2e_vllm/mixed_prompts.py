"""Makes vLLM's prompt of token ids and embeddings. It runs with vLLM's Python."""

from __future__ import annotations

from typing import Any

from tests.e2e_vllm.model import HIDDEN_SIZE

LONGEST = 4096


def mixed_prompt(parts: list[dict[str, Any]]) -> Any:
    """Return a prompt of parts: ``{"tokens": [...]}``, ``{"seed": n, "count": n}`` or ``{"zeros": n}``.

    The last two are embeddings. Those of a seed begin with the same ones, whatever their count. As vLLM's server does,
    a token has an embedding of zeros, and an embedding has a token id that vLLM ignores.
    """
    import numpy as np
    import torch
    from vllm.inputs import EmbedsPrompt

    rows: list[Any] = []
    token_ids: list[int] = []
    are_tokens: list[bool] = []
    for part in parts:
        tokens = part.get("tokens")
        if tokens is None and "seed" in part:
            values = np.random.RandomState(part["seed"]).standard_normal((LONGEST, HIDDEN_SIZE))[: part["count"]]
        else:
            values = np.zeros((len(tokens) if tokens is not None else part["zeros"], HIDDEN_SIZE))
        rows.append(values)
        token_ids += tokens if tokens is not None else [5] * len(values)
        are_tokens += [tokens is not None] * len(values)
    embeddings = torch.from_numpy(np.concatenate(rows)).to(torch.float32)
    if not any(are_tokens):
        return EmbedsPrompt(prompt_embeds=embeddings)
    return EmbedsPrompt(prompt_embeds=embeddings, prompt_token_ids=token_ids, prompt_is_token_ids=are_tokens)
