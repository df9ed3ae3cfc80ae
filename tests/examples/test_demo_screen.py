"""What a person sees of the demo: the headline first, two bars on one scale, and nothing too wide."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from examples.demo.screen import Screen
from examples.demo.story import Story
from examples.demo.text import text_of, tokenize
from tests.test_imports import REPOSITORY

ANSWER = "The depot keeps what the first engine has computed, " * 3
QUESTION = "Why is no prompt prefilled twice?"
ATTACHED = {"num_layers": 4, "num_weights": 2_400_000, "description": "NumPy on one thread"}


def answered(first_token: float, *, matched: int, tokens: list[int], stored: int = 0) -> dict[str, Any]:
    return {
        "seconds": {"first_token": first_token, "store": 0.01, "retrieve": 0.005},
        "matched_tokens": matched,
        "retrieved_bytes": matched * 4_096,
        "stored_tokens": stored,
        "stored_bytes": stored * 4_096,
        "tokens": tokens,
    }


def story_of(
    *, quick: float = 0.1, slow: float = 3.0, matched: int = 4_352, other: str = ANSWER, said: Story | None = None
) -> Story:
    """A story that has ended, as the engines tell it."""
    story = said or Story()
    story.begin("a depot starts")
    story.starts("a")
    story.takes("a", "started", {"prompt_tokens": 4_435})
    story.takes("a", "asked", {})
    story.takes("a", "prefilled", {"num_tokens": 4_435})
    story.takes("a", "answered", answered(slow, matched=0, tokens=[1], stored=4_352))
    story.starts("b")
    story.takes("b", "started", {"prompt_tokens": 4_452})
    story.takes("b", "attached", ATTACHED)
    story.takes("b", "asked", {})
    story.takes("b", "found", {"num_tokens": matched})
    story.takes("b", "prefilled", {"num_tokens": 4_452})
    for token in tokenize(ANSWER):
        story.takes("b", "token", {"token": token})
    story.takes("b", "answered", answered(quick, matched=matched, tokens=tokenize(ANSWER)))
    story.takes("b", "asked", {})
    story.takes("b", "prefilled", {"num_tokens": 4_452})
    for token in tokenize(other):
        story.takes("b", "token", {"token": token})
    compared = {
        "seconds": {"first_token": slow},
        "tokens": tokenize(other),
        "identical": other == ANSWER,
        "max_kv_difference": 0.0,
        "max_logit_difference": 0.0 if other == ANSWER else 1.25,
    }
    story.takes("b", "compared", compared)
    return story


def printed(story: Story, width: int = 80, encoding: str = "utf-8") -> list[str]:
    """The lines that the end of a story has where there is no terminal."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    Screen(Console(file=file, width=width), QUESTION, text_of).print_end(story)
    file.seek(0)
    return file.read().splitlines()


def test_the_headline_is_first_and_says_both_times() -> None:
    assert printed(story_of())[0] == "Engine B answered 30× sooner: 0.10 s instead of 3.0 s."
    assert printed(story_of(quick=0.5))[0] == "Engine B answered 6.0× sooner: 0.50 s instead of 3.0 s."


def test_the_bars_have_one_scale() -> None:
    bars = {line[:19].strip(): line[19:].count("█") for line in printed(story_of(quick=1.5)) if "█" in line}
    assert bars["without the depot"] == 80 - 19 - 8
    assert abs(bars["with the depot"] - bars["without the depot"] / 2) <= 1


def test_the_shortest_bar_is_still_seen() -> None:
    line = next(line for line in printed(story_of(quick=0.001)) if line.startswith("with the depot"))
    assert line == "with the depot     ▏ 0.00 s"


def test_the_answer_is_words_and_is_printed_once() -> None:
    text = " ".join(" ".join(printed(story_of())).split())
    assert text.count(ANSWER.strip()) == 1
    assert f"the same {len(ANSWER)} tokens with and without the depot" in text


@pytest.mark.parametrize("width", [80, 60, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for story in (story_of(), story_of(other="something else " * 20)):
        assert max(map(len, printed(story, width))) <= min(width, 100)


def test_other_tokens_are_an_error_that_shows_both_answers() -> None:
    story = story_of(other="something else " * 3)
    lines = printed(story)
    assert not story.is_identical
    assert lines[0] == "The depot returned KV that engine B would not compute."
    text = " ".join(" ".join(lines).split())
    assert ANSWER.strip() in text
    assert "something else something else" in text
    assert "differences        at most 0 in the retrieved KV, 1.25 in the logits" in lines


def test_a_long_word_is_folded_and_not_cut() -> None:
    story = story_of()
    story.with_depot.tokens[:] = tokenize("a" * 150)
    assert "".join(printed(story)).count("a") >= 150


def test_an_answer_without_the_depots_help_is_an_error() -> None:
    story = story_of(matched=0)
    assert not story.is_identical
    assert printed(story)[0] == "Engine B found nothing in the depot."


def test_an_answer_that_was_no_sooner_says_so() -> None:
    assert printed(story_of(quick=3.5))[0] == "Engine B answered no sooner: 3.5 s instead of 3.0 s."


def test_a_terminal_without_unicode_gets_ascii_bars() -> None:
    lines = printed(story_of(), encoding="ascii")
    assert lines[0] == "Engine B answered 30x sooner: 0.10 s instead of 3.0 s."
    assert any(line.startswith("without the depot  ####") for line in lines)


def test_escapes_that_a_model_generates_do_not_reach_the_terminal() -> None:
    story = story_of()
    story.with_depot.tokens[:] = tokenize("\x1b]0;title\x07 words")
    assert "\\x1b]0;title\\x07 words" in " ".join(printed(story))


def test_each_step_is_a_line_at_its_end_without_a_terminal() -> None:
    file = io.StringIO()
    screen = Screen(Console(file=file, width=80), QUESTION, text_of)
    story = Story(on_step=screen.print_step)
    with screen.live(story):
        story_of(said=story)
    assert [line.partition(":")[0] for line in file.getvalue().splitlines()] == [
        "a depot starts",
        "engine A starts",
        "engine A has computed 4,435 tokens, and stored 4,352",
        "engine B starts",
        "engine B finds 4,352 of 4,452 tokens, and computes the rest",
        "engine B without the depot computes 4,452 of 4,452 tokens",
    ]


def test_in_a_terminal_the_bars_grow_before_the_end() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, height=40, force_terminal=True, color_system=None)
    screen = Screen(console, QUESTION, text_of)
    story = Story(on_step=screen.print_step)
    story_of(said=story)
    del story.engines["b"].facts["compared"]
    story.without_depot.first_token_seconds = None
    story.without_depot.tokens.clear()
    assert story.without_depot.start is not None
    drawn = []
    for seconds in (0.5, 1.0):
        with console.capture() as capture:
            console.print(screen.running(story, story.without_depot.start + seconds))
        drawn.append(capture.get())
    lengths = [
        next(line for line in each.splitlines() if line.startswith("without the depot")).count("█") for each in drawn
    ]
    assert lengths == [round((80 - 19 - 8) / 6 - 0.5), round((80 - 19 - 8) / 3 - 0.5)]


def test_the_picture_in_the_docs_is_small_and_fetches_nothing() -> None:
    picture = REPOSITORY / "docs" / "pictures" / "demo.svg"
    text = picture.read_text(encoding="utf-8")
    assert picture.stat().st_size < 150_000
    assert "url(http" not in text
    assert "sooner" in text
