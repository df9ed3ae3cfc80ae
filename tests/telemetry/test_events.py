"""The events themselves, and their fields as plain values."""

from __future__ import annotations

import inspect
import json
import time
from typing import Any

import numpy as np
import pytest

from telemetry import events
from telemetry.attributes import attributes
from telemetry.events import EVENT_TYPES, BlocksAllocated, ChunksStored, Event, LeaseGranted, ServerStarted

ALL = pytest.mark.parametrize("event_type", EVENT_TYPES.values(), ids=EVENT_TYPES.keys())


def test_registry_names_every_event_of_the_module():
    defined = {name: value for name, value in vars(events).items() if inspect.isclass(value)}
    del defined["Event"]
    assert {name: value for name, value in defined.items() if issubclass(value, Event)} == EVENT_TYPES


def test_work_comes_in_pairs_matched_by_operation_id():
    started = {name.removesuffix("Started") for name in EVENT_TYPES if "operation_id" in fields(name, "Started")}
    finished = {name.removesuffix("Finished") for name in EVENT_TYPES if "operation_id" in fields(name, "Finished")}
    assert started == finished == {"Lookup", "Store", "Retrieve", "Transfer"}
    for work in finished:
        assert {"duration_seconds", "outcome"} <= set(fields(f"{work}Finished", "Finished"))


def fields(name: str, suffix: str) -> list[str]:
    return list(inspect.signature(EVENT_TYPES[name]).parameters) if name.endswith(suffix) else []


@ALL
def test_event_says_when_it_is_published(event_type):
    assert "(" not in event_type.__doc__.splitlines()[0][: len(event_type.__name__) + 1], "a generated docstring"


@ALL
def test_event_has_slots_and_takes_keywords_only(event_type, make_example):
    assert not hasattr(make_example(event_type), "__dict__")
    with pytest.raises(TypeError, match="positional"):
        event_type(0.0)


def test_event_has_both_times_of_its_creation():
    before = time.time(), time.monotonic()
    event = LeaseGranted(lease_id="x", num_chunks=1, expire_time=0.0)
    after = time.time(), time.monotonic()
    assert before[0] <= event.time <= after[0]
    assert before[1] <= event.monotonic <= after[1]


@ALL
def test_attributes_are_what_json_can_hold_and_what_not_every_event_has(event_type, make_example):
    event = make_example(event_type)
    plain = attributes(event)
    assert json.loads(json.dumps(plain)) == plain
    assert not {"time", "monotonic", "instance_id", "session_id"} & plain.keys()
    own = inspect.signature(event_type).parameters.keys() - inspect.signature(Event).parameters.keys()
    assert plain.keys() == {f"num_{name}" if isinstance(getattr(event, name), np.ndarray) else name for name in own}


def test_bytes_become_hex(make_example):
    assert attributes(make_example(ChunksStored))["keys"] == ["0102", "ff"]


def test_text_stays_as_it_is(make_example):
    assert attributes(make_example(ServerStarted)).items() >= {"version": "text"}.items()
    assert attributes(make_example(ServerStarted))["listen"] == ["127.0.0.1:1", "unix:/x"]


def test_arrays_become_their_lengths(make_example):
    assert attributes(make_example(BlocksAllocated))["records"] == [
        {"session_id": "s", "num_block_ids": 3, "num_token_ids": 2, "num_reused_block_ids": 0, "resumed": False}
    ]


def test_numbers_of_numpy_become_numbers(make_example):
    num_chunks: Any = np.int64(3)
    event = LeaseGranted(lease_id="x", num_chunks=num_chunks, expire_time=np.float64(0.5))
    assert json.dumps(attributes(event)) == '{"lease_id": "x", "num_chunks": 3, "expire_time": 0.5}'


def test_field_of_another_kind_is_a_mistake():
    with pytest.raises(TypeError, match="holds a set"):
        attributes(LeaseGranted(lease_id="x", num_chunks={1}, expire_time=0.0))  # type: ignore[arg-type]  # the mistake


def test_instances_of_two_tenants_have_different_labels():
    labels = [
        LeaseGranted(instance_id="engine", tenant=tenant, lease_id="x", num_chunks=1, expire_time=0.0).instance_label
        for tenant in ("red", "blue", "")
    ]
    assert labels == ["red/engine", "blue/engine", "engine"]
    assert LeaseGranted(tenant="red", lease_id="x", num_chunks=1, expire_time=0.0).instance_label == ""


def test_a_publisher_sets_the_tenant_of_an_event():
    event = LeaseGranted(instance_id="engine", lease_id="x", num_chunks=1, expire_time=0.0)
    assert event.of_tenant("red") is event
    assert (event.tenant, event.instance_id) == ("red", "engine")
