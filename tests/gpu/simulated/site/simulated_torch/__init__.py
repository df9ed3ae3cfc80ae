"""The layer under torch: a tensor on "cuda" is a CPU tensor in the memory of the simulated card."""

import torch

from . import cuda
from .tensors import OnCard


class _Generator(torch.Generator):
    """A generator for the card is one for the CPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if torch.device(device).type == "cuda" else device)  # type: ignore[call-arg]


def install():
    """Make torch take the card for its CUDA device, in the thread that calls this."""
    for name in cuda.__all__:
        setattr(torch.cuda, name, getattr(cuda, name))
    torch.Generator = _Generator  # type: ignore[misc]
    OnCard().__enter__()  # until the process ends
