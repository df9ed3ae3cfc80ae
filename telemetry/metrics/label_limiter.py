"""The names of models as attributes: clients choose them, so only a limited number is exported."""

from __future__ import annotations

from telemetry.metrics.instruments import OTHER

MAX_MODELS = 64
MAX_INSTANCES = 4_096


class LabelLimiter:
    """The names under which models are exported, also by instance.

    The first `MAX_MODELS` names are exported as they are. Later ones, and the models of unknown instances, are "other".
    It remembers the last `MAX_INSTANCES` new instances, also those that are gone, because their work may end later.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._by_instance: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<LabelLimiter {len(self._names)}/{MAX_MODELS} names, {len(self._by_instance)} instances>"

    def exported(self, model_name: str) -> str:
        """Return the model's name, or "other"."""
        if model_name in self._names:
            return model_name
        if len(self._names) >= MAX_MODELS:
            return OTHER
        self._names.add(model_name)
        return model_name

    def of(self, instance_label: str) -> str:
        """Return the exported name of the instance's model."""
        return self._by_instance.get(instance_label, OTHER)

    def note(self, instance_label: str, model_name: str) -> None:
        """Remember the instance's model."""
        if self._by_instance.get(instance_label) == model_name:
            return
        self._by_instance.pop(instance_label, None)
        self._by_instance[instance_label] = self.exported(model_name)
        if len(self._by_instance) > MAX_INSTANCES:
            del self._by_instance[next(iter(self._by_instance))]
