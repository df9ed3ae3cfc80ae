"""Factories for `kvdepot check-engine`: engines that are right, and others with one mistake each."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kvdepot import EngineUnderTest, SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from kvdepot.layout.layouts import Layout
from kvdepot.v1.cache_pb2 import KvGroup

NUM_LAYERS, NUM_BLOCKS, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE = 2, 16, 4, 3, 5
SIZES = (NUM_LAYERS, 2, NUM_BLOCKS, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE)
NHD = layouts.NL_X_TWO_NB_BS_NH_HS


def memory(size_bytes: int) -> tuple[SharedBuffer, SharedRegions]:
    buffer, shared = SharedBuffer.create(size_bytes, by="fd"), SharedRegions()
    shared.add(buffer)
    return buffer, shared


def right(layout: Layout = NHD) -> EngineUnderTest:
    """One group, with a gap in front of its memory."""
    buffer, shared = memory(64 + 2 * int(np.prod(SIZES)))
    kv = buffer.view("uint16", SIZES, offset_bytes=64)
    group = layout.from_tensors(list(kv), shared, dtype="bfloat16")
    return EngineUnderTest(groups=[group], regions=shared, planes=[[(layer[0], layer[1]) for layer in kv]])


def changed(**fields: Any) -> EngineUnderTest:
    """Return the right engine with another description of its group."""
    engine = right()
    group = KvGroup()
    group.CopyFrom(engine.groups[0])
    for name, value in fields.items():
        setattr(group, name, value)
    return replace(engine, groups=[group])


def two_ranks() -> list[EngineUnderTest]:
    """Two ranks with three groups: two of one pool of blocks, in heads before tokens, and one of latents."""
    return [_of_three_groups(by="name"), _of_three_groups(by="fd")]


def of_two_revisions() -> list[EngineUnderTest]:
    """Two ranks that name other revisions of the weights."""
    return [replace(right(), model_revision=revision) for revision in ("1", "2")]


def revision_is_a_number() -> EngineUnderTest:
    """A revision that is no text."""
    wrong: Any = 7
    return replace(right(), model_revision=wrong)


def _of_three_groups(by: Any) -> EngineUnderTest:
    buffer = SharedBuffer.create(1 << 16, by=by)
    shared = SharedRegions(by)
    shared.add(buffer)
    pool = buffer.view("float16", (2, 2, 30, 2, 4, 8))  # layers, K and V, blocks, heads, tokens, elements
    latent = buffer.view("uint8", (20, 8, 7), offset_bytes=pool.nbytes + 3)
    layout = layouts.NL_X_TWO_NB_NH_BS_HS
    groups = [
        layout.from_tensors(list(pool), shared),
        layout.from_tensors(list(pool), shared),
        layouts.NL_X_NB_BS_HS.from_tensors([latent], shared),
    ]
    heads_last = [(layer[0].swapaxes(1, 2), layer[1].swapaxes(1, 2)) for layer in pool]
    planes: Sequence[Any] = [heads_last, heads_last, [[latent[:, :, np.newaxis]]]]
    return EngineUnderTest(groups=groups, regions=shared, planes=planes)


def wrong_stride_order() -> EngineUnderTest:
    """It declares heads before tokens, and its arrays have tokens before heads."""
    return changed(token_stride_bytes=10, head_stride_bytes=40)


def wrong_block_count() -> EngineUnderTest:
    return changed(num_blocks=NUM_BLOCKS - 1)


def wrong_head_size() -> EngineUnderTest:
    return changed(head_bytes=8)


def beyond_the_region() -> EngineUnderTest:
    engine = right()
    group = KvGroup()
    group.CopyFrom(engine.groups[0])
    for plane in group.planes:
        plane.offset_bytes += 1 << 10
    return replace(engine, groups=[group])


def elsewhere() -> EngineUnderTest:
    """Its arrays begin 32 bytes before the place that it declares."""
    engine = right()
    buffer = SharedBuffer.create(1 << 14, by="fd")
    engine.regions.add(buffer)  # type: ignore[union-attr]
    kv = buffer.view("uint16", SIZES, offset_bytes=32)
    group = KvGroup()
    group.CopyFrom(engine.groups[0])
    for plane in group.planes:
        plane.region = 1
    return replace(engine, groups=[group], planes=[[(layer[0], layer[1]) for layer in kv]])


def array_outside() -> EngineUnderTest:
    engine = right()
    return replace(engine, planes=[[engine.planes[0][0], tuple(np.copy(each) for each in engine.planes[0][1])]])


def swapped() -> EngineUnderTest:
    engine = right()
    return replace(engine, planes=[[(values, keys) for keys, values in engine.planes[0]]])


def overlapping() -> EngineUnderTest:
    """Its second layer begins within the first."""
    layer_bytes = 2 * int(np.prod(SIZES[1:]))
    buffer, shared = memory(2 * layer_bytes)
    kv = [buffer.view("uint16", SIZES[1:], offset_bytes=offset) for offset in (0, layer_bytes // 4)]
    group = NHD.from_tensors(kv, shared)
    return EngineUnderTest(groups=[group], regions=shared, planes=[[(layer[0], layer[1]) for layer in kv]])


def too_small() -> EngineUnderTest:
    buffer, shared = memory(1 << 12)
    kv = buffer.view("uint8", (1, 2, 1, 4, 1, 8))
    group = NHD.from_tensors(list(kv), shared)
    return EngineUnderTest(groups=[group], regions=shared, planes=[[(kv[0][0], kv[0][1])]])


def too_few_layers() -> EngineUnderTest:
    engine = right()
    return replace(engine, planes=[engine.planes[0][:1]])


def no_memory() -> EngineUnderTest:
    return replace(right(), regions=right().regions.regions)  # type: ignore[union-attr]  # the buffer is gone


def nonsense() -> str:
    return "an engine"


def raises() -> EngineUnderTest:
    raise ValueError("the weights are missing")


def hangs() -> EngineUnderTest:
    threading.Event().wait()
    raise AssertionError


def dies() -> EngineUnderTest:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def prints() -> EngineUnderTest:
    sys.stdout.write("loading the weights\n")
    return right()


no_function = 5
