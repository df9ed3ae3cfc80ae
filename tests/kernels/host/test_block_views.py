"""Block views: few copies, none of them large."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.geometry import PlaneKind
from kernels.host.block_views import Blocks, Span, pieces, spans
from kernels.plan import plan_groups
from tests.kernels.reference import KV_LAYOUTS, LAYOUTS, Engine, Shape

BLOCK_BYTES = 4 * 2 * 8 * 2  # of one plane
IDS = [5, 3, 1, 6, 0, 2]


def spans_of(name: str, *, one_region: bool = True) -> tuple[Span, ...]:
    engine = Engine((name, Shape()), one_region=one_region)
    (plan,) = plan_groups(engine.groups, 24)
    pitch = 1 << 20
    memory = np.zeros(len(engine.regions) * pitch, dtype=np.uint8)
    engine.close()
    return spans(plan, memory, np.arange(plan.regions.max() + 1) * pitch)


def cut(span: Span, ids: list[int], limit_bytes: int, first_block: int = 0) -> list[tuple[Blocks, Blocks]]:
    chunk = span.chunk_blocks(np.zeros(1 << 20, dtype=np.uint8), 0)
    return list(pieces(span, chunk, np.array(ids[first_block:]), limit_bytes))


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


def test_all_layers_of_all_blocks_are_a_piece_if_they_fit() -> None:
    (span,) = spans_of("LBNHC")
    assert len(cut(span, IDS, 36 * BLOCK_BYTES)) == 1
    assert len(cut(span, IDS, 36 * BLOCK_BYTES, first_block=5)) == 1
    assert len(cut(span, IDS, 36 * BLOCK_BYTES, first_block=6)) == 0


def test_layers_are_cut_before_blocks_are() -> None:
    (span,) = spans_of("LBNHC")
    for limit, sizes in ((24, {(2, 6), (1, 6)}), (12, {(1, 6)}), (11, {(1, 5), (3, 1)}), (1, {(1, 1)})):
        pairs = cut(span, IDS, limit * BLOCK_BYTES)
        assert {(len(blocks.array), len(blocks.block_ids)) for blocks, _ in pairs} == sizes


@pytest.mark.parametrize("first_block", [0, 2, 5])
@pytest.mark.parametrize("limit_bytes", [1, BLOCK_BYTES, 2 * BLOCK_BYTES, 5 * BLOCK_BYTES, 30 * BLOCK_BYTES, 1 << 20])
def test_pieces_are_bounded_and_every_block_of_every_layer_is_in_one(limit_bytes: int, first_block: int) -> None:
    (span,) = spans_of("LBHNC")
    span.blocks[:] = 0
    chunk = span.chunk_blocks(np.zeros(1 << 20, dtype=np.uint8), 0)
    for of_engine, of_chunk in pieces(span, chunk, np.array(IDS[first_block:]), limit_bytes):
        assert len(of_engine.array) * len(of_engine.block_ids) * 2 * BLOCK_BYTES <= max(limit_bytes, 2 * BLOCK_BYTES)
        assert [IDS[index] for index in of_chunk.block_ids] == of_engine.block_ids.tolist()
        for of in (of_engine, of_chunk):
            of.array[:, :, of.block_ids] += 1
    of_blocks = span.blocks.swapaxes(0, 2).reshape(span.blocks.shape[2], -1)
    assert (of_blocks == np.isin(np.arange(len(of_blocks)), IDS[first_block:])[:, None]).all()
    assert (chunk[:, :, first_block:] == 1).all()
    assert (chunk[:, :, :first_block] == 0).all()
