"""The file of the demo's weights: each matrix as int8, with a scale for each row."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SHIPPED = Path(__file__).parent / "model.npz"

_SHAPE, _SCALE = "shape", ".scale"


class WeightsUnreadable(Exception):
    """The file of the weights is missing or damaged; the message says which file, and how to make it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers that make a decoder."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden_size: int
    mlp_size: int
    vocabulary_size: int
    window_tokens: int
    """A token sees so many tokens in each layer, itself among them: the last ones."""

    rotary_base: ClassVar[float] = 10_000.0
    norm_epsilon: ClassVar[float] = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model's arrays by name, such as ``layers.0.query``; matrices are `[outputs, inputs]`."""

    shape: ModelShape
    arrays: Mapping[str, Floats]

    @property
    def num_weights(self) -> int:
        """The number of all weights."""
        return sum(array.size for array in self.arrays.values())

    def digest(self) -> str:
        """Return a text that is another one for other weights."""
        digest = hashlib.blake2b(repr(self.shape).encode(), digest_size=16)
        for name, array in sorted(self.arrays.items()):
            digest.update(name.encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def save(weights: Weights, path: Path) -> None:
    """Write the weights; a matrix loses what int8 can't hold."""
    stored: dict[str, NDArray[np.generic]] = {_SHAPE: np.array(json.dumps(asdict(weights.shape)))}
    for name, array in weights.arrays.items():
        if array.ndim == 2:
            scale = np.maximum(np.abs(array).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
            stored[name] = np.rint(array / scale).astype(np.int8)
            stored[name + _SCALE] = scale
        else:
            stored[name] = array.astype(np.float32)
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **stored)


def load(path: Path) -> Weights:
    """Read weights.

    Raises: WeightsUnreadable.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            shape = ModelShape(**json.loads(str(file[_SHAPE])))
            arrays = {name: file[name] for name in file.files if name != _SHAPE and not name.endswith(_SCALE)}
            for name, array in arrays.items():
                scale = file[name + _SCALE] if array.ndim == 2 else np.float32(1)
                arrays[name] = array.astype(np.float32) * scale
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else f"no file of weights ({error})"
        raise WeightsUnreadable(f"{path}: {why}. Install kvdepot again, or train it: `make demo-model`") from error
    return Weights(shape=shape, arrays=arrays)
