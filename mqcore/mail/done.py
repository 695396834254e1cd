"""The line of the log for each mail, when it is settled."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ._transaction import Transaction
from .refusals import quoted
from .verdicts import Verdict

log = logging.getLogger("mqcore.mail.done")


def log_mail(transaction: Transaction, verdicts: Sequence[Verdict], seconds: float) -> None:
    """Tell what became of it: of a mail to several recipients in one line, by the first verdict that is not good, if any."""
    mail = transaction.mails[0]
    verdict = next((each for each in verdicts if not each.is_good), verdicts[0])
    peer = None if mail.connection is None else str(mail.connection.peer)
    about = {
        "mail": mail.origin.id,
        "peer": peer,
        "envelope": mail.envelope,
        "recipients": len(transaction.mails),
        "outcome": verdict.kind.value,
        "code": 250 if verdict.is_good else verdict.reply.code,
        "seconds": round(seconds, 4),
        "bytes": len(mail.origin.mime),
    }
    line = " ".join(f"{name}={quoted(value) if isinstance(value, str) else value}" for name, value in about.items())
    log.info("%s", line, extra={**about, "connection": peer, "event": "mail"})
