"""What was refused or failed goes back to the queue that it came from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ._transaction import Transaction
from .verdicts import PutBack, Verdict

log = logging.getLogger(__name__)


class Returner:
    """Lets each transaction put its mail back, in a task of `tasks`, and says what it did."""

    tasks: asyncio.TaskGroup

    def __init__(self, returned: Callable[[Transaction, PutBack], object]) -> None:
        self._returned = returned
        self._open: dict[asyncio.Task[PutBack], Transaction] = {}

    def add(self, transaction: Transaction, verdict: Verdict) -> None:
        task = self.tasks.create_task(self._put_back(transaction, verdict))
        self._open[task] = transaction
        task.add_done_callback(self._after)

    async def _put_back(self, transaction: Transaction, verdict: Verdict) -> PutBack:
        try:
            return await transaction.put_back(verdict)
        except Exception:
            log.exception("a mail could not be put back")
            return PutBack.LEFT

    def _after(self, task: asyncio.Task[PutBack]) -> None:
        self._returned(self._open.pop(task), PutBack.LEFT if task.cancelled() else task.result())

    def cut(self) -> None:
        """Break off what is still open."""
        for task in self._open:
            if not task.cancelling():
                task.cancel()
