"""The chart's fixtures, for what the image and the chart have to agree on."""

from tests.helm.conftest import helm, install

__all__ = ["helm", "install"]
