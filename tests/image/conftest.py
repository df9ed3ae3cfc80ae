"""The chart's fixtures, for tests that the image and the chart agree."""

from tests.helm.conftest import helm, install

__all__ = ["helm", "install"]
