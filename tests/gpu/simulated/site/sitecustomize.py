"""Gives a process the simulated card: puts a layer under torch when that is imported, and costs nothing before."""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

_HERE = str(Path(__file__).parent)


class _TorchFinder(MetaPathFinder):
    """Finds torch as it would be found without us, and has the layer installed once it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_install(module):
                load(module)
                import simulated_torch

                simulated_torch.install()

            spec.loader.exec_module = load_and_install  # type: ignore[method-assign]
        return spec


def _run_the_other_sitecustomize():
    """Python runs only the first of its name on the path."""
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(_HERE)]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _TorchFinder())
_run_the_other_sitecustomize()
