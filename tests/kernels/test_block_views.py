"""Block views: few copies, none of them large."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.address_plan import plan_groups
from kernels.block_views import Bytes, Span, pieces, spans
from kernels.geometry import PlaneKind
from tests.kernels.reference import KV_LAYOUTS, LAYOUTS, Engine, Shape

BLOCK_BYTES = 4 * 2 * 8 * 2  # of one plane


def spans_of(name: str, *, one_region: bool = True) -> tuple[Span, ...]:
    engine = Engine((name, Shape()), one_region=one_region)
    (plan,) = plan_groups(engine.groups, 24)
    pitch = 1 << 20
    memory = np.zeros(len(engine.regions) * pitch, dtype=np.uint8)
    engine.close()
    return spans(plan, memory, np.arange(plan.regions.max() + 1) * pitch)


def cut(span: Span, ids: list[int], limit_bytes: int, first_block: int = 0) -> list[tuple[Bytes, Bytes]]:
    chunk = span.chunk_blocks(np.zeros(1 << 20, dtype=np.uint8), 0)
    return list(pieces(span, chunk, np.array(ids), first_block, limit_bytes))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_buffer_for_each_layer_is_one_span(name: str) -> None:
    assert len(spans_of(name, one_region=False)) == 1


@pytest.mark.parametrize("name", ["NL_X_TWO_NB_BS_NH_HS", "TWO_X_NL_X_NBBS_NH_HS", "NL_X_NB_BS_HS"])
def test_layers_at_unequal_distances_are_spans_of_their_own(name: str) -> None:
    assert len(spans_of(name, one_region=True)) > 1


@pytest.mark.parametrize("name", KV_LAYOUTS)
def test_k_is_in_front_of_v_in_every_span(name: str) -> None:
    for span in spans_of(name):
        assert span.blocks.shape[1] == len((PlaneKind.K, PlaneKind.V))


def test_scattered_blocks_are_a_piece_each_with_all_layers_that_fit() -> None:
    (span,) = spans_of("LBNHC")
    ids = [5, 3, 1, 6, 0, 2]
    assert len(cut(span, ids, 6 * BLOCK_BYTES)) == 6
    assert len(cut(span, ids, 4 * BLOCK_BYTES)) == 12
    assert len(cut(span, ids, 2 * BLOCK_BYTES)) == 18


def test_blocks_that_follow_each_other_are_one_piece_if_they_fit() -> None:
    (span,) = spans_of("LBNHC")
    ids = [5, 6, 0, 1, 2, 7]
    assert len(cut(span, ids, 1 << 20)) == 3
    assert len(cut(span, ids, 1 << 20, first_block=1)) == 3
    assert len(cut(span, ids, 1 << 20, first_block=5)) == 1
    assert len(cut(span, ids, 1 << 20, first_block=6)) == 0


@pytest.mark.parametrize("limit_bytes", [1, BLOCK_BYTES, 2 * BLOCK_BYTES, 5 * BLOCK_BYTES, 1 << 20])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 6, 0, 2], [4, 5, 6, 1, 2, 0]], ids=str)
def test_pieces_are_bounded_and_add_up(ids: list[int], limit_bytes: int) -> None:
    (span,) = spans_of("LBHNC")
    cuts = cut(span, ids, limit_bytes)
    assert all(blocks.shape == chunk.shape for blocks, chunk in cuts)
    assert all(blocks.nbytes <= max(limit_bytes, 2 * BLOCK_BYTES) for blocks, _ in cuts)
    assert sum(blocks.nbytes for blocks, _ in cuts) == 6 * 6 * BLOCK_BYTES
