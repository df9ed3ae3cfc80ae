"""The format of a log line, and the lines that are suppressed when one source line logs too much."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from io import StringIO

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id

from telemetry.events import Event, ServerDraining, StoreFinished
from telemetry.logs.line_format import JsonFormat, TextFormat
from telemetry.logs.subscriber import LogSubscriber
from telemetry.logs.throttling import LineThrottle
from tests.fakes.clock import Clock

Lines = Callable[[], list[str]]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The one of the log subscriber."""
    logger = logging.getLogger("telemetry.logs.subscriber")
    before = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.level, logger.propagate = before


@pytest.fixture
def lines_in(logger: logging.Logger) -> Iterator[Callable[..., Lines]]:
    """`lines_in(JsonFormat())` logs in this format; the result returns the lines so far."""
    handlers = []

    def start(formatter: logging.Formatter, *filters: logging.Filter) -> Lines:
        stream = StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        for each in filters:
            handler.addFilter(each)
        logger.addHandler(handler)
        handlers.append(handler)
        return lambda: stream.getvalue().splitlines()

    yield start
    for handler in handlers:
        logger.removeHandler(handler)


@pytest.fixture
def event(make_example: Callable[[type[Event]], Event]) -> Event:
    return make_example(StoreFinished)


def test_event_is_an_object_with_its_facts(lines_in: Callable[..., Lines], event: Event) -> None:
    lines = lines_in(JsonFormat())
    LogSubscriber().handle([event, ServerDraining()])
    stored, draining = map(json.loads, lines())
    assert stored.pop("time").endswith("+00:00")
    assert stored == {
        "level": "WARNING",
        "logger": "telemetry.logs.subscriber",
        "message": "StoreFinished",
        "tenant": "text",
        "instance_id": "text/text",
        "session_id": "text",
        "operation_id": "text",
        "rank": 7,
        "duration_seconds": 0.125,
        "outcome": "text",
        "stored_tokens": 7,
        "resident_tokens": 7,
        "refused_tokens": 7,
        "tail_tokens": 7,
        "stored_bytes": 7,
        "refusal_reason": "text",
    }
    assert draining["message"] == "ServerDraining"


def test_line_tells_the_span_of_its_event(lines_in: Callable[..., Lines], event: Event) -> None:
    text, structured = lines_in(TextFormat()), lines_in(JsonFormat())
    span = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("s").get_span_context()
    spans = {event: span}
    LogSubscriber(span_of=spans.get).handle([event, ServerDraining()])
    trace_id, span_id = format_trace_id(span.trace_id), format_span_id(span.span_id)
    of_event, of_none = map(json.loads, structured())
    assert (of_event["trace_id"], of_event["span_id"]) == (trace_id, span_id)
    assert "trace_id" not in of_none
    assert text()[0].endswith(f" trace_id={trace_id} span_id={span_id}")
    assert text()[1].endswith(" ServerDraining")


def test_line_tells_the_span_that_it_is_logged_in(lines_in: Callable[..., Lines], logger: logging.Logger) -> None:
    lines = lines_in(JsonFormat())
    with TracerProvider(shutdown_on_exit=False).get_tracer("t").start_as_current_span("s") as span:
        logger.info("hello")
    logger.info("bye")
    inside, outside = map(json.loads, lines())
    assert inside["span_id"] == format_span_id(span.get_span_context().span_id)
    assert "span_id" not in outside


def test_traceback_is_a_field_and_the_line_is_one(lines_in: Callable[..., Lines], logger: logging.Logger) -> None:
    lines = lines_in(JsonFormat())
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("%s went wrong\n", "this")
    [line] = lines()
    assert json.loads(line)["message"] == "this went wrong\n"
    assert json.loads(line)["exception"].endswith("ValueError: two\nlines")


def test_fact_can_not_take_the_place_of_a_field(lines_in: Callable[..., Lines], logger: logging.Logger) -> None:
    lines = lines_in(JsonFormat())
    logger.info("%(level)s", {"level": "forged", "odd": {1}})
    line = json.loads(lines()[0])
    assert line["level"] == "INFO"
    assert line["odd"] == "{1}"


def test_text_of_many_lines_has_the_ids_on_the_first(lines_in: Callable[..., Lines], logger: logging.Logger) -> None:
    lines = lines_in(TextFormat())
    logger.info("first\n  second", extra={"trace_id": "a", "span_id": "b"})
    assert lines()[0].endswith("first trace_id=a span_id=b")
    assert lines()[1] == "  second"


def complain(logger: logging.Logger) -> None:
    logger.warning("a collector is down")


def test_burst_from_one_source_line_is_throttled_and_counted(
    lines_in: Callable[..., Lines], logger: logging.Logger
) -> None:
    clock = Clock()
    lines = lines_in(TextFormat(), LineThrottle(lines=2, period_seconds=60.0, clock=clock))
    for _ in range(10):
        complain(logger)
    logger.warning("another source line")
    assert len(lines()) == 3
    clock.advance(60)
    complain(logger)
    assert lines()[-1].endswith("a collector is down num_suppressed=8")


def test_throttling_passes_records_below_warning_and_those_with_a_limit_of_their_own(
    lines_in: Callable[..., Lines], logger: logging.Logger, event: Event
) -> None:
    lines = lines_in(TextFormat(), LineThrottle(lines=1))
    for _ in range(3):
        logger.info("everything works")
        LogSubscriber().handle([event])
    assert len(lines()) == 6
