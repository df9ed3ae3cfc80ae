"""Finding: which chunks a tier has, for one lookup: a local one by its index, a remote one by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.l1.keys import ChunkKey
from service.tiers.answer import Answer, Doubt
from service.tiers.clears.placing import Placing
from service.tiers.record import Owner
from service.tiers.traffic.accounts import Accounts
from service.tiers.traffic.asking import Asking


class Finding:
    """Asks a remote tier for what is not known already. `clock` is in seconds."""

    def __init__(self, asking: Asking, placing: Placing, accounts: Accounts, clock: Callable[[], float]) -> None:
        self._asking = asking
        self._placing = placing
        self._accounts = accounts
        self._clock = clock

    def lacks(self, key: ChunkKey) -> bool:
        """Return whether the tier certainly has no chunk of a key: only a local one knows that without a wait."""
        index = self._placing.index
        if index is None or index.has(key):
            return False
        self._accounts.note_asked(1, 0)
        return True

    async def find(self, keys: Sequence[ChunkKey], owner: Owner, timeout_seconds: float) -> Answer:
        """Return which chunks the tier has, within the timeout."""
        if self._placing.index is not None:
            found = [self._placing.index.has(key) for key in keys]
            self._accounts.note_asked(len(keys), sum(found))
            return Answer(found)
        found = [False] * len(keys)
        names = [self._placing.name(key, owner) for key in keys]
        asked = [number for number, name in enumerate(names) if name not in self._placing.absent]
        if not asked:
            return Answer(found)
        num_changes = self._placing.forgotten.num_changes
        start = self._clock()
        answered = await self._asking.ask([names[number] for number in asked], timeout_seconds)
        doubt = Doubt.FAILED if answered.found is None else Doubt.LATE if answered.is_late else None
        if answered.found is not None and num_changes == self._placing.forgotten.num_changes:  # else names are void
            for number, is_there in zip(asked, answered.found, strict=True):
                found[number] = is_there
        self._accounts.asked(len(asked), sum(found), self._clock() - start, doubt or "ok")
        return Answer(found, doubt)
