"""What all calls about the pages of one pool have in common, on the event loop."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.connector.command_runner import is_answer
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.depot_connection import DepotConnection
from kvdepot.connector.event_loop import BackgroundTasks
from kvdepot.errors import DepotError
from kvdepot.requests import block_table, hash_prefix
from kvdepot.sglang.pause import Pause
from kvdepot.v1.cache_pb2 import BlockTable, Prefix

logger = logging.getLogger(__name__)

END_SECONDS = 5.0
MAX_ENDING = 256


class PoolCalls:
    """The connection of a pool, its sessions, and what its calls have told about the depot.

    A page is a chunk of `page_size` tokens. Its key is SGLang's hash of the page, so that it needs no prefix to be
    stored or found. `salt` keeps the pages of pools apart, whose keys are equal. `caller` begins the names of sessions.
    """

    def __init__(self, config: ConnectorConfig, page_size: int, num_groups: int, *, salt: str, caller: str) -> None:
        self.connection: DepotConnection | None = None
        self.config = config
        self.page_size = page_size
        self.pause = Pause()
        self._num_groups = num_groups
        self._salt = salt
        self._caller = caller
        self._tasks = BackgroundTasks()
        self._num_ending = 0
        self._numbers = itertools.count(1)
        self._logged: set[str] = set()

    @property
    def attachment(self) -> AsyncAttachment | None:
        """The attachment for a call now. None: there is none, or the depot does not answer at the moment."""
        attachment = self.connection.attachment if self.connection is not None else None
        if attachment is None or self.pause.is_on or attachment.chunk_size != self.page_size:
            return None
        return attachment

    def prefix(self, keys: Sequence[bytes]) -> Prefix:
        """Return the pages as the depot names them."""
        return hash_prefix(keys, self.page_size, cache_salt=self._salt)

    def tables(self, pages: Sequence[int], absent_blocks: int = 0) -> list[BlockTable]:
        """Return the block tables of pages, the same for each group."""
        return [block_table(pages, absent_blocks=absent_blocks)] * self._num_groups

    def new_session(self) -> str:
        """Return the id of a session for one call of SGLang."""
        return f"{self._caller}-{next(self._numbers)}"

    def end(self, attachment: AsyncAttachment, session_id: str) -> None:
        """End a session, and with it its leases, while the caller goes on. The depot ends forgotten ones itself."""
        if not attachment.lost and self._num_ending < MAX_ENDING:
            self._num_ending += 1
            self._tasks.start(self._end(attachment, session_id))

    def failed(self, error: DepotError, what: str) -> bool:
        """Note a call that failed. Return whether the depot itself ended it, so that it touches no page any more."""
        self.log(error.reason, f"a {what} failed: {error}")
        if is_answer(error):
            return True
        self.pause.note_failure()
        return False

    def log(self, reason: str, message: str) -> None:
        """Log a warning, once for each reason: under load there would be thousands."""
        if reason not in self._logged:
            self._logged.add(reason)
            logger.warning("%s%s", f"pool {self._salt}: " if self._salt else "", message)

    async def close(self) -> None:
        """Cancel the calls that end sessions. The end of the attachment ends these as well."""
        await self._tasks.cancel()

    async def _end(self, attachment: AsyncAttachment, session_id: str) -> None:
        try:
            await attachment.end_session(session_id, timeout_seconds=END_SECONDS)
        except DepotError as error:
            logger.debug("session %s was not ended: %s", session_id, error)
        finally:
            self._num_ending -= 1
