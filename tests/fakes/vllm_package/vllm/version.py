"""The version of vLLM that this package stands for."""

__version__ = "0.32.0"
