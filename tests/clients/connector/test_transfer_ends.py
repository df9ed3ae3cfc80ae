"""A transfer is done exactly when its last part has ended, in any order of all parts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kvdepot.connector.transfer_ends import TransferEnds


@given(
    data=st.data(),
    num_parts=st.dictionaries(st.integers(1, 9), st.integers(1, 4), min_size=1),
)
def test_each_transfer_is_done_once_and_with_its_last_part(data: st.DataObject, num_parts: dict[int, int]) -> None:
    done: list[int] = []
    ends = TransferEnds(done.extend)
    for transfer_id, count in num_parts.items():
        ends.begin(transfer_id, count)
    ended: Counter[int] = Counter()
    for transfer_id in data.draw(st.permutations(list(Counter(num_parts).elements()))):
        ends.end([transfer_id])
        ended[transfer_id] += 1
        assert sorted(done) == sorted(each for each in num_parts if ended[each] == num_parts[each])
    assert repr(ends) == "<TransferEnds of 0 transfers>"
