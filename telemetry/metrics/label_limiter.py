"""Models as an attribute: their names come from clients, so only so many are told apart."""

from __future__ import annotations

MAX_MODELS = 64
MAX_INSTANCES = 4_096
OTHER = "other"


class LabelLimiter:
    """What model an instance has, under a name that may be exported.

    The first ``MAX_MODELS`` names are exported as they are; later ones, and instances that nothing is known of, are
    "other". An instance is remembered after it went, because work of its may end after it; of all instances the last
    ``MAX_INSTANCES`` that were new are.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._by_instance: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Models {len(self._names)}/{MAX_MODELS} names, {len(self._by_instance)} instances>"

    def exported(self, model_name: str) -> str:
        """The model's name, or "other"."""
        if model_name in self._names:
            return model_name
        if len(self._names) >= MAX_MODELS:
            return OTHER
        self._names.add(model_name)
        return model_name

    def of(self, instance_id: str) -> str:
        """The exported name of the instance's model."""
        return self._by_instance.get(instance_id, OTHER)

    def note(self, instance_id: str, model_name: str) -> None:
        """The instance has this model."""
        if self._by_instance.get(instance_id) == model_name:
            return
        self._by_instance.pop(instance_id, None)
        self._by_instance[instance_id] = self.exported(model_name)
        if len(self._by_instance) > MAX_INSTANCES:
            del self._by_instance[next(iter(self._by_instance))]
