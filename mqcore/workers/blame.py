"""Which messages ended the processes that had them in hand: by their digests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

ALONE_AFTER = 2
"""Deaths: then it runs alone, so that the next one proves it."""
REFUSED_AFTER = 3
REFUSED_FOR = 3600.0
"""Seconds."""
REMEMBERED_FOR = 24 * 3600.0
"""Seconds since the last death: a sender tries again for days, but most of them every hour."""
MOST = 100_000
"""That are remembered."""


class Blame:
    """`changed` is called when `suspects` or `refused` are others than before."""

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed
        self._deaths: dict[int, tuple[int, float]] = {}
        """How many, and when the last one was; who died last comes last."""
        self._refused: dict[int, float] = {}
        """Until when."""

    @property
    def suspects(self) -> set[int]:
        """They run alone."""
        return {digest for digest, (deaths, _) in self._deaths.items() if deaths >= ALONE_AFTER}

    @property
    def refused(self) -> set[int]:
        return set(self._refused)

    def died(self, in_hand: Iterable[int]) -> None:
        """A process that had these. Of several, one that was suspected before was not there alone, and proves nothing."""
        in_hand = set(in_hand)
        now = time.monotonic()
        self._forget(now)
        self.expire()
        for digest in in_hand:
            deaths = self._deaths.pop(digest, (0, 0.0))[0] + 1
            if deaths >= REFUSED_AFTER and len(in_hand) == 1:
                self._refused[digest] = now + REFUSED_FOR
            else:
                self._deaths[digest] = min(deaths, ALONE_AFTER), now
        if in_hand:
            self._changed()

    def survived(self, digest: int) -> None:
        """It ran alone, and did no harm."""
        if self._deaths.pop(digest, None) is not None:
            self._changed()

    def expire(self) -> None:
        """To be called now and then."""
        now = time.monotonic()
        over = [digest for digest, until in self._refused.items() if until <= now]
        for digest in over:
            del self._refused[digest]
        if over:
            self._changed()

    def _forget(self, now: float) -> None:
        old = [digest for digest, (_, last) in self._deaths.items() if now - last > REMEMBERED_FOR]
        for digest in [*old, *list(self._deaths)[: max(0, len(self._deaths) - MOST)]]:
            self._deaths.pop(digest, None)
