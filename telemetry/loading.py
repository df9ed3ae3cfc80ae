"""Subscribers that the settings name: imported and made when the server starts."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, cast

from telemetry.delivery import Subscriber

_NAMES = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_TEXT = re.compile(rf"(?P<module>{_NAMES}):(?P<factory>{_NAMES})(?:=(?P<arguments>.*))?", re.DOTALL)


class CannotLoadSubscriber(Exception):
    """The factory can't be imported or called with its arguments, or makes no Subscriber."""


@dataclass(frozen=True, slots=True)
class SubscriberSource:
    """The `factory` of a `module` that makes a subscriber, and its keyword arguments.

    The factory may be a class, and may have a dotted name within its module.
    """

    module: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> SubscriberSource:
        """Parse `package.module:factory`, or `package.module:factory={"name": value}` with arguments in JSON.

        Raises: ValueError.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not like package.module:factory or package.module:factory={{JSON}}")
        try:
            arguments = json.loads("{}" if match["arguments"] is None else match["arguments"])
        except json.JSONDecodeError as error:
            raise ValueError(f"{text!r}: the text after the = is not JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise ValueError(f'{text!r}: an object is expected after the =, such as {{"path": "events.csv"}}')
        return cls(match["module"], match["factory"], arguments)

    def load(self) -> Subscriber:
        """Import the module and make the subscriber.

        Raises: CannotLoadSubscriber.
        """
        name = f"{self.module}:{self.factory}"
        # Foreign code may raise anything, SystemExit included. The depot reports it in one line.
        try:
            module = importlib.import_module(self.module)
            factory = reduce(getattr, self.factory.split("."), cast(Any, module))
        except (Exception, SystemExit) as error:
            raise CannotLoadSubscriber(f"{name} can't be imported: {_one_line(error)}") from error
        if not callable(factory):
            raise CannotLoadSubscriber(f"{name} is of type {type(factory).__name__} and can't be called")
        try:
            subscriber = factory(**self.arguments)
        except (Exception, SystemExit) as error:
            raise CannotLoadSubscriber(f"{name} makes no subscriber: {_one_line(error)}") from error
        fault = _fault(subscriber)
        if fault:
            raise CannotLoadSubscriber(f"{name} makes a {type(subscriber).__name__}, which is no subscriber: {fault}")
        return cast(Subscriber, subscriber)


def _fault(subscriber: object) -> str:
    """Return why it is no Subscriber. Empty if it is one."""
    if inspect.iscoroutine(subscriber):
        subscriber.close()
        return "a factory is called and not awaited"
    name = getattr(subscriber, "name", None)
    if not isinstance(name, str) or not name:
        return "its name is not a text"
    for method in ("handle", "close"):
        member = getattr(subscriber, method, None)
        if not callable(member):
            return f"it has no method {method}"
        if inspect.iscoroutinefunction(member):
            return f"its method {method} is async, and the bus awaits nothing"
    return ""


def _one_line(error: BaseException) -> str:
    """Return the error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
