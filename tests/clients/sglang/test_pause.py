"""The pause after calls that the depot did not answer."""

from __future__ import annotations

from kvdepot.sglang.pause import FIRST_SECONDS, MAX_SECONDS, Pause


def test_a_pause_doubles_up_to_a_bound_and_an_answer_ends_it() -> None:
    now = [100.0]
    pause = Pause(lambda: now[0])
    assert not pause.is_on
    lengths = []
    for _ in range(6):
        pause.note_failure()
        begin = now[0]
        while pause.is_on:
            now[0] += FIRST_SECONDS
        lengths.append(now[0] - begin)
    assert lengths == [0.5, 1.0, 2.0, 4.0, MAX_SECONDS, MAX_SECONDS]
    pause.note_failure()
    assert pause.is_on
    pause.note_answer()
    assert not pause.is_on
    pause.note_failure()
    now[0] += FIRST_SECONDS
    assert not pause.is_on
