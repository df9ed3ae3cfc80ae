"""The chart, installed."""

from tests.helm.conftest import helm, install

__all__ = ["helm", "install"]
