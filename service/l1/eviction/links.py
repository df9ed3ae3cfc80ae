"""Lists of chunks that are doubly linked through the chunks: a chunk leaves its list without a look for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False, repr=False)
class Link:
    """What can be in one list at a time. In a list, both neighbours are set."""

    older: Link | None = field(default=None, init=False)
    newer: Link | None = field(default=None, init=False)

    @property
    def is_linked(self) -> bool:
        """Whether it is in a list."""
        return self.newer is not None

    def unlink(self) -> None:
        """Take it out of its list; it must be in one."""
        older, newer = self.older, self.newer
        assert older is not None and newer is not None, "it is in no list"
        older.newer, newer.older = newer, older
        self.older = self.newer = None


class LinkedList:
    """A ring of links through one that is none of them."""

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self._end = Link()
        self._end.older = self._end.newer = self._end

    def __bool__(self) -> bool:
        return self._end.newer is not self._end

    def __iter__(self) -> Iterator[Link]:
        """Yield each link, the oldest first. The one that was yielded may be taken out."""
        link = self._end.newer
        while link is not self._end:
            assert link is not None
            following = link.newer
            yield link
            link = following

    def first(self) -> Link | None:
        """Return the oldest link. None: there is none."""
        link = self._end.newer
        return link if link is not self._end else None

    def last(self) -> Link | None:
        """Return the newest link. None: there is none."""
        link = self._end.older
        return link if link is not self._end else None

    def after(self, link: Link) -> Link | None:
        """Return the link that is newer by one. None: this is the newest."""
        return link.newer if link.newer is not self._end else None

    def append(self, link: Link) -> None:
        """Add a link as the newest one."""
        _insert(link, self._end.older, self._end)

    def insert_before(self, newer: Link | None, link: Link) -> None:
        """Add a link in front of one of this list. None: as the newest one."""
        newer = newer or self._end
        _insert(link, newer.older, newer)

    def extend(self, newer: LinkedList) -> None:
        """Take over all links of another list, as the newest ones."""
        if newer:
            first, last = newer._end.newer, newer._end.older
            end, mine = self._end, self._end.older
            assert first is not None and last is not None and mine is not None
            mine.newer, first.older = first, mine
            last.newer, end.older = end, last
            newer._end.older = newer._end.newer = newer._end


def _insert(link: Link, older: Link | None, newer: Link | None) -> None:
    assert older is not None and newer is not None and link.newer is None, "it is in a list already"
    link.older, link.newer = older, newer
    older.newer = newer.older = link
