"""The topic of a model's KV events, and the tenants whose chunks readers are told of."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cache

EVERY_TENANT = "*"
PLACEHOLDERS = frozenset({"pod", "model", "tenant"})


class BadTopic(ValueError):
    """A template of topics can't be used."""


class Topics:
    """Topics by model and tenant. `tenants`: those that are told of, `*` for all; empty: the default tenant alone.

    Raises: BadTopic.
    """

    def __init__(self, template: str, pod: str, tenants: Sequence[str] = ()) -> None:
        check_template(template)
        check_tenants(template, tenants)
        self._template = template
        self._pod = pod
        self._tenants = frozenset(tenants or ("",))
        self.topic = cache(self._topic)

    def __repr__(self) -> str:
        return f"<Topics {self._template!r} of {self._pod!r}>"

    def tells(self, tenant: str) -> bool:
        """Return whether readers are told of a tenant's chunks."""
        return tenant in self._tenants or EVERY_TENANT in self._tenants

    def _topic(self, model_name: str, tenant: str) -> bytes:
        return self._template.format(pod=self._pod, model=model_name, tenant=tenant).encode()


def check_template(template: str) -> None:
    """Check that a template has `{model}`, and no other placeholders than those that are known.

    Raises: BadTopic.
    """
    names = _names(template)
    if names - PLACEHOLDERS:
        raise BadTopic(f"{template!r} has other placeholders than {{pod}}, {{model}} and {{tenant}}")
    if "model" not in names:
        raise BadTopic(f"{template!r} has no {{model}}: readers could not tell the blocks of two models apart")


def check_tenants(template: str, tenants: Sequence[str]) -> None:
    """Check that the topics of several tenants differ.

    Raises: BadTopic.
    """
    if (len(set(tenants)) > 1 or EVERY_TENANT in tenants) and "tenant" not in _names(template):
        raise BadTopic("the blocks of several tenants need {tenant} in kv_events_topic, so that they are not mixed")


def _names(template: str) -> set[str]:
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        template.format(**dict.fromkeys(names - {""}, ""))
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise BadTopic(f"{template!r} can't be read as a template with {{pod}}, {{model}} and {{tenant}}") from error
    return names
