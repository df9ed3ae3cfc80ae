"""The chart, installed."""

from tests.helm.conftest import default, helm, install

__all__ = ["default", "helm", "install"]
