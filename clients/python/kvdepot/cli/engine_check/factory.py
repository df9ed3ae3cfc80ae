"""The engine of an author's factory, or what is wrong with the factory, in one sentence."""

from __future__ import annotations

import traceback
from importlib import import_module

from kvdepot.cli.engine_check.rank import Rank, Wrong, ranks_of


def engine_of(target: str) -> list[Rank]:
    """Return the ranks of the engine that `MODULE:FACTORY` makes.

    Raises: Wrong, DepotError.
    """
    module_name, _, name = target.partition(":")
    try:
        factory = getattr(import_module(module_name), name)
    except AttributeError:
        raise Wrong(f"the module {module_name} has no {name}") from None
    except Exception as error:
        raise Wrong(f"the module {module_name} can't be imported: {_where(error)}") from None
    if not callable(factory):
        raise Wrong(f"{target} is a {type(factory).__name__}, and not a function that returns an EngineUnderTest")
    try:
        returned = factory()
    except Exception as error:
        raise Wrong(f"the factory raised {_where(error)}") from None
    return ranks_of(returned)


def _where(error: Exception) -> str:
    """Return an error with the line of the author's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = next((frame for frame in reversed(frames) if "importlib" not in frame.filename), None)
    place = f" ({own.filename}, line {own.lineno})" if own is not None and own.filename != __file__ else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
