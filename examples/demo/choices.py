"""What a person may choose about the demo."""

from __future__ import annotations

from enum import StrEnum


class DecoderName(StrEnum):
    """Which model answers."""

    NUMPY = "numpy"
    TRANSFORMERS = "transformers"


class DemoSize(StrEnum):
    """How long the demo takes."""

    FULL = "full"
    SMALL = "small"


class DemoDevice(StrEnum):
    """Where the demo's engines compute."""

    CPU = "cpu"
    CUDA = "cuda"
