"""The sink of mail that stays with the server which asks about it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from .._mail import Mail
from ..base import Answer, Sink, Source
from ..verdicts import ACCEPTED, Verdict
from .errors import Unsayable

if TYPE_CHECKING:
    from .._gateway import Gateway

log = logging.getLogger(__name__)

UNSAYABLE = Verdict.deferred(451, "4.3.0 this filter has a problem; try again later")


class MilterSink(Sink):
    """The server has the mail, and is told what plugins changed."""

    delivers_soon = True

    def __init__(self, url: str) -> None:
        """`url`: the source's."""
        self.url = url
        self.unsayable = 0
        """Messages that were put off, as plugins made of them what the server cannot be told."""

    @classmethod
    def open(cls, path: str, source: Source, **options: Any) -> Self:
        return cls(source.url, **options)

    def figures(self) -> dict[str, Any]:
        return {"milter_unsayable": self.unsayable}

    def begin(self, gateway: Gateway) -> None:
        from ._session import MilterConnection  # takes its time, which other places need not wait for

        self._kind = MilterConnection

    async def deliver(self, mails: Sequence[Mail]) -> Sequence[Verdict]:
        return [self.deliver_soon(mails)] * len(mails)

    def deliver_soon(self, mails: Sequence[Mail], token: object = None, answer: Answer | None = None) -> Verdict:
        connection = mails[0].connection
        if not isinstance(connection, self._kind) or connection.session is None:
            raise TypeError("only mail that a server asks about can stay with it")
        try:
            connection.session.prepare_answer(mails)
        except Unsayable as error:
            self.unsayable += 1
            log.error("the server cannot be told what plugins made of the mail %s: %s", mails[0].origin.id, error)
            return UNSAYABLE
        return ACCEPTED
