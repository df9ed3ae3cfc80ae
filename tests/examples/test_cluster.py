"""What a person sees of the cluster: a line for each step, a table that fits 80 columns, and what went wrong."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from examples.cluster.screen import Screen
from examples.cluster.story import Conversation, Story, Visit
from examples.demo.text import tokenize
from kvdepot.v1 import admin_pb2, cache_pb2

COMPUTED = Visit(engine="a", node=1, prompt_tokens=13_774, seconds=1.5, seconds_without=1.4, answer="yes")
SHARED = Visit(
    engine="b", node=2, prompt_tokens=13_774, l2_tokens=13_568, seconds=0.04, seconds_without=1.5, answer="no"
)
MIXED = replace(SHARED, node=1, l1_tokens=1_024, l2_tokens=12_288)
LOST = Visit(engine="a", node=2, prompt_tokens=14_000, seconds=1.6, is_lost=True, answer="lost")
AGAIN = replace(SHARED, engine="a", answer="lost")
GOOD = [COMPUTED, SHARED, MIXED, LOST, AGAIN]


def shown(story: Story, width: int = 80) -> str:
    output = io.StringIO()
    tier = admin_pb2.TierStatus(tier=cache_pb2.TIER_L2, name="valkey")
    tier.traffic.num_reads_by_outcome["arrived"] = 53
    tier.traffic.num_writes_by_outcome["ok"] = 54
    Screen(Console(file=output, width=width, highlight=False)).end(story, [[tier], [tier]])
    return output.getvalue()


def test_a_good_story_fits_80_columns_and_says_what_was_shared() -> None:
    text = shown(Story(2, GOOD))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "13,568" in text and "killed" in text
    assert "valkey: 108 chunks written and 106 read by the depots that run now" in text
    assert " ".join(text.split()).endswith(
        "All 5 answers are the same tokens with and without depots. 3 of them began with KV that came from another "
        "node."
    )


@pytest.mark.parametrize(
    ("visits", "fault"),
    [
        (
            [*GOOD, replace(SHARED, is_identical=False)],
            "Engine B on node 2 answered differently without the depot.",
        ),
        ([COMPUTED, SHARED, LOST, AGAIN], "Node 1 got nothing that another node had stored."),
        ([COMPUTED, SHARED, MIXED], "No engine noticed that its node was killed."),
        (
            [COMPUTED, SHARED, MIXED, LOST, SHARED],
            "Engine A answered differently after it had lost its node.",
        ),
    ],
)
def test_what_is_not_as_it_should_be_is_said_and_nothing_is_praised(visits: list[Visit], fault: str) -> None:
    story = Story(2, visits)
    assert story.faults() == [fault]
    text = shown(story)
    assert fault in text
    assert "All" not in text


def test_each_question_of_a_conversation_begins_with_all_that_was_said() -> None:
    conversation = Conversation(engine="a", text="A document.")
    first = conversation.ask("Why?")
    conversation.answered(tokenize(" Because."))
    assert conversation.ask("And then?") == f"{first} Because.\n\nQuestion: And then?\nAnswer:"
