"""Which weights the engine computes with, as a part of all salts, and whether its own cache is of these weights.

The revision of the weights names those that the engine loaded at its start. After a change they have a generation: a
name that several engines may agree on, or one that no other engine has.
"""

from __future__ import annotations

import logging
import uuid

from kvdepot.connector.identity import salt_of

logger = logging.getLogger(__name__)


class WeightGeneration:
    """The generation of one engine's weights. Engines share chunks only if their generations are equal.

    A version names weights within a `training_run`. Versions of different runs never meet, because runs count alike.
    Without a run, no version is agreed on.
    """

    def __init__(self, training_run: str = "") -> None:
        self._training_run = training_run
        self._generation: tuple[str, ...] = ()
        self._cache_is_used = False
        self._warned = False
        self._last_reason = ""
        self.cache_is_stale = False
        """Whether the engine's own cache may hold KV of other weights. Nothing that builds on it is stored."""

    def change(self, version: str, reason: str) -> None:
        """Take new weights. An empty `version` means that nothing names them: they are the engine's own.

        `reason` is for the log.
        """
        self.cache_is_stale = self.cache_is_stale or self._cache_is_used
        if version and self._training_run:
            self._generation, self._last_reason = (self._training_run, version), ""
            logger.info("KV is shared under version %s of the training run %s", version, self._training_run)
            return
        self._generation = (uuid.uuid4().hex,)
        if reason != self._last_reason:  # vLLM reports a reset twice
            self._last_reason = reason
            until = "its weights have a version" if self._training_run else "it is started again"
            logger.info("%s: this engine shares KV with no other one until %s", reason, until)
        if version and not self._warned:
            self._warned = True
            logger.warning(
                "version %s of the weights is not used, because kvdepot.training_run is not set: with it, engines with "
                "equal versions share KV",
                version,
            )

    def salt(self, cache_salt: str) -> str:
        """Return the salt of keys of KV that these weights compute, for requests with this salt."""
        return salt_of(cache_salt, self._generation)

    def cache_used(self) -> None:
        """Note that the engine has put KV into its cache."""
        self._cache_is_used = True

    def cache_emptied(self) -> None:
        """Note that the engine has emptied its cache."""
        self._cache_is_used = self.cache_is_stale = False
