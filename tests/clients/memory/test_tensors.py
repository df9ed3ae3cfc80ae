"""Tensors of torch that are shared: another process sees their bytes, and views stay views."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kvdepot import SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2
from tests.clients.memory.conftest import READ, WRITE, in_another_process, path_of

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")


def filled(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_another_process_sees_the_bytes_of_a_tensor_and_its_exact_size(by: Any) -> None:
    tensor = filled(7, 33)
    expected = bytes_of(tensor)
    shared = SharedRegions(by)
    assert not shared.regions
    region, offset = shared.locate(tensor)
    assert region == 0
    (shared_region,) = shared.regions
    path = path_of(shared_region)
    assert shared_region.size_bytes == Path(path).stat().st_size
    assert bytes_of(tensor) == expected
    assert in_another_process(READ, path)[offset:] == expected
    in_another_process(WRITE, path, offset + 8, "four")
    assert bytes_of(tensor)[8:12] == b"four"


def test_views_of_one_storage_are_one_region_and_stay_views(by: Any) -> None:
    whole = filled(4, 6, 8)
    first, last = whole[0], whole[3, 2:]
    shared = SharedRegions(by)
    region, offset = shared.locate(last)
    assert shared.locate(first) == (region, offset - (3 * 6 + 2) * 8 * 4)
    assert shared.locate(whole) == shared.locate(first)
    assert len(shared.regions) == 1
    last.zero_()
    assert not whole[3, 2:].any()
    assert in_another_process(READ, path_of(shared.regions[0]))[offset : offset + 128] == bytes(128)


def test_storages_are_regions_of_their_own(by: Any) -> None:
    tensors = [filled(16), filled(16), filled(16)]
    shared = SharedRegions(by)
    assert [shared.locate(tensor)[0] for tensor in tensors] == [0, 1, 2]
    assert [shared.locate(tensor)[0] for tensor in reversed(tensors)] == [2, 1, 0]
    assert len({path_of(region) for region in shared.regions}) == 3


def test_regions_outlive_the_tensors_until_the_collector_goes(by: Any) -> None:
    shared = SharedRegions(by)
    tensor = filled(16)
    shared.locate(tensor)
    path = Path(path_of(shared.regions[0]))
    del tensor
    assert path.exists()
    del shared
    assert not path.exists()


def test_tensor_that_another_way_of_sharing_holds_already_is_located_too(by: Any) -> None:
    tensor = filled(64)
    expected = bytes_of(tensor)
    tensor.share_memory_()
    SharedRegions("name" if by == "fd" else "fd").locate(tensor)
    shared = SharedRegions(by)
    region, offset = shared.locate(tensor)
    assert in_another_process(READ, path_of(shared.regions[region]))[offset:] == expected


def test_tensor_in_a_buffer_is_not_moved(by: Any) -> None:
    with SharedBuffer.create(4096) as buffer:
        tensor = torch.from_numpy(buffer.view(np.float32, (4, 4), offset_bytes=64))
        shared = SharedRegions(by)
        shared.add(buffer)
        assert shared.locate(tensor[1]) == (0, 64 + 16)
        assert shared.regions == (buffer.region,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_vllm_views_of_one_allocation_are_found_by_another_process(dtype: torch.dtype, by: Any) -> None:
    num_layers, num_blocks, num_heads, block_size, head_size = 2, 3, 2, 4, 6
    element_bytes = dtype.itemsize
    backing = torch.randint(-128, 128, (2 * 3 * 2 * 4 * 12 * element_bytes,), dtype=torch.int8)
    views = list(
        backing.view(dtype).view(num_layers, num_blocks, block_size, num_heads, 2 * head_size).permute(0, 1, 3, 2, 4)
    )
    shared = SharedRegions(by)
    group = layouts.VLLM.from_tensors(views, shared)
    assert len(shared.regions) == 1
    assert group.dtype == str(dtype).removeprefix("torch.")
    memory = in_another_process(READ, path_of(shared.regions[0]))
    for plane, block, token, head in product(group.planes, range(num_blocks), range(block_size), range(num_heads)):
        start = plane.offset_bytes + block * group.block_stride_bytes
        start += token * group.token_stride_bytes + head * group.head_stride_bytes
        half = plane.kind == cache_pb2.PLANE_KIND_V
        expected = views[plane.layer][block, head, token].view(2, head_size)[int(half)]
        assert memory[start : start + group.head_bytes] == bytes_of(expected)


def test_groups_of_a_hybrid_model_share_regions(by: Any) -> None:
    backing = torch.zeros(2, 4, 1024)
    full = [backing[0].view(4, 2, 8, 4, 16), backing[1].view(4, 2, 8, 4, 16)]
    window = [torch.zeros(2, 16, 8, 1, 16)]
    shared = SharedRegions(by)
    groups = [
        layouts.NL_X_NB_TWO_BS_NH_HS.from_tensors(full, shared),
        layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors(window, shared),
    ]
    assert len(shared.regions) == 2
    assert [{plane.region for plane in group.planes} for group in groups] == [{0}, {1}]


def test_tensor_of_a_device_is_refused(by: Any) -> None:
    with pytest.raises(ValueError, match="meta"):
        SharedRegions(by).locate(torch.zeros(4, device="meta"))


def test_storage_that_does_not_fit_is_refused_before_it_is_moved(by: Any, full_shm: int) -> None:
    tensor = torch.zeros(full_shm)
    with pytest.raises(OSError, match="has space for"):
        SharedRegions(by).locate(tensor)
    assert not tensor.is_shared()
