"""The registry of connectors, as in vLLM 0.32."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar


class KVConnectorFactory:
    _registry: ClassVar[dict[str, Callable[[], Any]]] = {}

    @classmethod
    def register_connector(cls, name: str, module_path: str, class_name: str) -> None:
        if name in cls._registry:
            raise ValueError(f"Connector '{name}' is already registered.")
        cls._registry[name] = lambda: getattr(importlib.import_module(module_path), class_name)

    @classmethod
    def get_connector_class_by_name(cls, connector_name: str) -> Any:
        if connector_name not in cls._registry:
            raise ValueError(f"Connector '{connector_name}' is not registered.")
        return cls._registry[connector_name]()
