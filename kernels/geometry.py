"""The layout of an engine's paged KV buffer, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class PlaneKind(IntEnum):
    """What a plane holds. The numbers give the canonical order of a layer's planes."""

    K = 1
    V = 2
    LATENT = 3
    KV = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """K, V, the latent, or K and V together, of one layer. Block 0, token 0, head 0 is at `offset_bytes`."""

    layer: int
    kind: PlaneKind
    region: int
    offset_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group of layers that share a block table and a shape.

    The byte at (plane p, block b, token t, head h) is at
    `p.offset_bytes + b*block_stride_bytes + t*token_stride_bytes + h*head_stride_bytes`, and `head_bytes` bytes are
    contiguous from there. The stride of a dimension of size 1 is ignored.

    A group that `holds_state` has in each block the state after all tokens up to the block's end.
    """

    num_layers: int
    num_blocks: int
    block_size: int
    num_heads: int
    head_bytes: int
    dtype: str
    block_stride_bytes: int
    token_stride_bytes: int
    head_stride_bytes: int
    planes: tuple[Plane, ...]
    holds_state: bool = False

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all planes."""
        return len(self.planes) * self.num_heads * self.head_bytes


@dataclass(frozen=True, slots=True)
class PosixShm:
    """A shared memory object by its name, without a slash."""

    name: str


@dataclass(frozen=True, slots=True)
class ProcessFd:
    """An open file descriptor of a process."""

    pid: int
    fd: int


@dataclass(frozen=True, slots=True)
class CudaIpc:
    """A CUDA allocation, exported with cudaIpcGetMemHandle."""

    handle: bytes
    offset_bytes: int
    device_uuid: str


@dataclass(frozen=True, slots=True)
class Region:
    """Memory of an engine that the depot maps."""

    size_bytes: int
    handle: PosixShm | ProcessFd | CudaIpc
