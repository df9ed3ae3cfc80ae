"""An explanation of a miss says in which parts of the identity engines differ."""

from __future__ import annotations

import pytest

from kvdepot.cli.explanation import explained
from kvdepot.v1 import cache_pb2
from kvdepot.v1.observability_pb2 import ExplainPrefixResponse, OtherIdentity, RankExplanation


def answer(reason: cache_pb2.MissReason.ValueType, **facts: object) -> ExplainPrefixResponse:
    return ExplainPrefixResponse(
        instance_id="pod-1",
        model_name="llama",
        model_revision="r2",
        block_hash_seed="sha256 seed=0",
        chunk_size=16,
        prompt_tokens=64,
        miss=cache_pb2.Miss(reason=reason),
        ranks=[RankExplanation()],
        other_identities=[OtherIdentity(world_size=1, matched_tokens=64, **facts)],  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("facts", "difference"),
    [
        ({"model_name": "llama", "model_revision": "r1"}, "revision 'r1', not 'r2'"),
        ({"model_name": "qwen", "model_revision": "r2"}, "model 'qwen', not 'llama'"),
        (
            {"model_name": "llama", "model_revision": "r2", "block_hash_seed": "sha256 seed=1"},
            "block hashes 'sha256 seed=1', not 'sha256 seed=0'",
        ),
        ({"model_name": "llama", "model_revision": "r2", "chunk_size": 400}, "tokens per chunk 400, not 16"),
    ],
)
def test_each_difference_to_what_is_stored_is_named(facts: dict[str, object], difference: str) -> None:
    text = explained(answer(cache_pb2.MISS_REASON_UNKNOWN_IDENTITY, **facts), "")
    assert f"64 tokens are stored with {difference}\n" in text
    assert text.startswith("pod-1, llama at r2: 0 of 64 tokens match")


def test_chunk_whose_bytes_had_changed_has_a_hint_of_its_own() -> None:
    text = explained(answer(cache_pb2.MISS_REASON_CORRUPT, model_name="llama", model_revision="r2"), "")
    assert "corrupt" in text
    assert "hint: its bytes had changed in memory, so the depot removed it" in text


def test_every_reason_of_a_miss_has_a_hint() -> None:
    for reason in cache_pb2.MissReason.values():
        text = explained(answer(reason, model_name="llama", model_revision="r2"), "")
        assert ("hint: " in text) == (reason != cache_pb2.MISS_REASON_UNSPECIFIED)
