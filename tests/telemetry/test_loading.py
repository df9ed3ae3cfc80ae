"""Subscribers of one's own are made from a text, or refused in one line that names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.loading import CannotLoadSubscriber, SubscriberSource

MODULE = """
import sys
raise_here = None

class Kept:
    name = "kept"
    def __init__(self, **arguments):
        self.arguments = arguments
        self.batches = []
    def handle(self, batch):
        self.batches.append(batch)
    def close(self):
        pass
    class Inner:
        @staticmethod
        def make():
            return Kept(inner=True)

class Nameless(Kept):
    name = ""

class Unhandling:
    name = "unhandling"
    def close(self):
        pass

class Unclosing:
    name = "unclosing"
    def handle(self, batch):
        pass

class Async(Kept):
    async def handle(self, batch):
        pass

async def async_factory():
    return Kept()

def nothing():
    pass

def raising():
    raise ValueError("two\\nlines")

def leaving():
    sys.exit("gone")

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "watching.py").write_text(MODULE)
    (tmp_path / "their_package" / "broken.py").write_text("def f(:\n")
    (tmp_path / "their_package" / "leaving.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "their_package.watching"


def load(text: str) -> object:
    return SubscriberSource.parse(text).load()


def test_a_factory_gets_its_arguments_by_name(module: str) -> None:
    subscriber = load(f'{module}:Kept={{"path": "a=b:c", "limits": [1, {{"x": null}}]}}')
    assert subscriber.arguments == {"path": "a=b:c", "limits": [1, {"x": None}]}  # type: ignore[attr-defined]


def test_a_factory_may_stand_within_a_class_and_take_nothing(module: str) -> None:
    assert load(f"{module}:Kept.Inner.make").arguments == {"inner": True}  # type: ignore[attr-defined]
    assert load(f"{module}:Kept").arguments == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("their_package.nowhere:Kept", "can't be imported: ModuleNotFoundError: No module named"),
        ("their_package.broken:f", "can't be imported: SyntaxError: "),
        ("their_package.leaving:f", "can't be imported: SystemExit: 3"),
        ("their_package.watching:Nowhere", "can't be imported: AttributeError: "),
        ("their_package.watching:Kept.Nowhere", "can't be imported: AttributeError: "),
        ("their_package.watching:number", "is of type int and can't be called"),
        ("their_package.watching:raising", "makes no subscriber: ValueError: two lines"),
        ("their_package.watching:leaving", "makes no subscriber: SystemExit: gone"),
        ('their_package.watching:nothing={"path": "x"}', "makes no subscriber: TypeError: nothing() got an unexpected"),
        ("their_package.watching:nothing", "makes a NoneType, which is no subscriber: its name"),
        ("their_package.watching:Nameless", "makes a Nameless, which is no subscriber: its name"),
        ("their_package.watching:Unhandling", "makes a Unhandling, which is no subscriber: it has no method handle"),
        ("their_package.watching:Unclosing", "makes a Unclosing, which is no subscriber: it has no method close"),
        ("their_package.watching:Async", "makes a Async, which is no subscriber: its method handle is async"),
        ("their_package.watching:async_factory", "is no subscriber: a factory is called and not awaited"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_is_no_subscriber_is_refused_in_a_line_that_names_it(source: str, complaint: str) -> None:
    with pytest.raises(CannotLoadSubscriber) as caught:
        load(source)
    message = str(caught.value)
    assert message.startswith(f"{source.partition('=')[0]} ")
    assert complaint in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "csv", "csv:", ":f", "a b:c", "../x:y", "a..b:c", "1a:b", "a:b c", "a:b "])
def test_a_text_that_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not like package\.module:factory"):
        SubscriberSource.parse(text)


@pytest.mark.parametrize("arguments", ["", "{", "path", "{'a': 1}"])
def test_arguments_that_are_not_json_are_refused(arguments: str) -> None:
    with pytest.raises(ValueError, match="is not JSON"):
        SubscriberSource.parse(f"a:b={arguments}")


@pytest.mark.parametrize("arguments", ["[]", "1", '"path"', "null"])
def test_arguments_without_names_are_refused(arguments: str) -> None:
    with pytest.raises(ValueError, match="an object is expected"):
        SubscriberSource.parse(f"a:b={arguments}")


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=4))
def test_any_arguments_are_read_as_json_says(arguments: dict[str, object]) -> None:
    source = SubscriberSource.parse(f"a.b:c.d={json.dumps(arguments)}")
    assert source == SubscriberSource("a.b", "c.d", arguments)
