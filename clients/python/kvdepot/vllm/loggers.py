"""Writes the connector's log where vLLM writes its own."""

from __future__ import annotations

import logging


def log_as_vllm_does() -> None:
    """Give our loggers vLLM's handlers, unless the user gave them their own."""
    ours, theirs = logging.getLogger("kvdepot"), logging.getLogger("vllm")
    if not ours.handlers and ours.level == logging.NOTSET:
        ours.handlers = list(theirs.handlers)
        ours.setLevel(theirs.getEffectiveLevel())
        ours.propagate = False
