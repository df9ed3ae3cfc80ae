"""Names of chunks after clears, and the note by which depots share what was cleared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tiers.clears.forgotten import MAX_CLEARS, Cleared, Forgotten
from service.tiers.io_worker.messages import NOTE_BYTES
from service.tiers.record import Owner
from tests.fakes.tiers import key_of

OWNER = Owner("t", "m", "s")
OTHERS = (Owner("t", "m", "s2"), Owner("t", "m2", "s"), Owner("t2", "m", "s"), Owner("", "", ""))


@pytest.mark.parametrize(
    ("cleared", "is_meant"),
    [
        (Cleared.of(None, "", None), True),
        (Cleared.of("t", "", None), True),
        (Cleared.of("t", "m", "s"), True),
        (Cleared.of("t", "m", ""), False),
        (Cleared.of("", "", None), False),
        (Cleared.of(None, "other", None), False),
    ],
)
def test_cleared_chunks_have_other_names_and_all_others_keep_theirs(cleared: Cleared, is_meant: bool) -> None:
    forgotten = Forgotten()
    assert forgotten.name(key_of(1), OWNER) == key_of(1)
    forgotten.clear(cleared)
    name = forgotten.name(key_of(1), OWNER)
    assert (name != key_of(1)) == is_meant
    forgotten.clear(cleared)
    assert (forgotten.name(key_of(1), OWNER) != name) == is_meant
    assert len(name) <= 64


def test_a_clear_counts_though_the_clock_goes_back() -> None:
    times = [1_000, 10]
    forgotten = Forgotten(lambda: times.pop(0))
    forgotten.clear(Cleared.of("t", "", None))
    before, name = forgotten.pack(), forgotten.name(key_of(1), OWNER)
    forgotten.clear(Cleared.of("t", "", None))
    after = forgotten.name(key_of(1), OWNER)
    assert after != name
    forgotten.merge(before)
    assert forgotten.name(key_of(1), OWNER) == after


def test_a_clear_of_everything_makes_older_ones_void() -> None:
    forgotten = Forgotten()
    forgotten.clear(Cleared.of("t", "", None))
    old = forgotten.pack()
    forgotten.clear(Cleared.of(None, "", None))
    assert len(forgotten) == 1
    assert forgotten.merge(old)
    assert len(forgotten) == 1


def test_too_many_clears_become_one_of_everything() -> None:
    forgotten = Forgotten()
    for number in range(MAX_CLEARS):
        forgotten.clear(Cleared.of("t", "", str(number)))
    assert forgotten.name(key_of(1), Owner("u", "", "")) == key_of(1)
    assert not Forgotten().merge(forgotten.pack())
    forgotten.clear(Cleared.of("t", "", "one more"))
    assert len(forgotten) == 1
    assert forgotten.name(key_of(1), Owner("u", "", "")) != key_of(1)


@pytest.mark.parametrize("note", [b"", bytes(NOTE_BYTES), b"kvdclr\0\1" + b"\xff" * (NOTE_BYTES - 8)])
def test_what_is_no_note_is_refused(note: bytes) -> None:
    with pytest.raises(ValueError, match="note"):
        Forgotten().merge(note)


CLEARS = st.builds(
    Cleared.of, st.sampled_from([None, "t", "u"]), st.sampled_from(["", "m"]), st.sampled_from([None, "", "s"])
)


@given(mine=st.lists(CLEARS, max_size=6), theirs=st.lists(CLEARS, max_size=6))
def test_two_depots_that_read_each_others_notes_have_the_same_names(mine: list[Cleared], theirs: list[Cleared]) -> None:
    a, b = Forgotten(), Forgotten()
    for forgotten, clears in ((a, mine), (b, theirs)):
        for cleared in clears:
            forgotten.clear(cleared)
    names = [[each.name(key_of(1), owner) for owner in (OWNER, *OTHERS)] for each in (a, b)]
    b.merge(a.pack())
    assert not a.merge(b.pack()), "the note lacks something"
    assert [a.name(key_of(1), owner) for owner in (OWNER, *OTHERS)] == [
        b.name(key_of(1), owner) for owner in (OWNER, *OTHERS)
    ]
    for owner, *before in zip((OWNER, *OTHERS), *names, strict=True):
        if any(name != key_of(1) for name in before):
            assert a.name(key_of(1), owner) != key_of(1)
