"""Stores mails in a new Maildir: `python storing.py WAY MAILDIR MAILS GROUP SIZE`, where WAY is "mqcore" or "standard library".

Prints the ns of user and of system time that each mail took. mqcore's sink is called directly, with groups as the gateway gives
them to it, of mails as clients send them; the standard library stores one at a time.
"""

from __future__ import annotations

import mailbox
import resource
import sys
from collections.abc import Callable

from mqcore.mail import Mail, MaildirSink, Origin

HEADER = b"Received: from client.example ([127.0.0.1])\r\n\tby server.example with ESMTP\r\nFrom: sender@example.org\r\n\r\n"


def by_mqcore(path: str, mime: bytes, mails: int, group: int) -> Callable[[], None]:
    sink = MaildirSink(path)
    known = {"received": 1.7e9, "envelope": "sender@example.org", "recipient": "recipient@example.org"}
    groups = [
        [
            Mail.read(Origin(mime, f"{number:032x}", number, **known, comes_again=False, is_traced=True))
            for number in range(first, first + group)
        ]
        for first in range(0, mails, group)
    ]

    def store() -> None:
        for each in groups:
            sink.store(each)

    return store


def by_mailbox(path: str, mime: bytes, mails: int, group: int) -> Callable[[], None]:
    maildir = mailbox.Maildir(path)

    def store() -> None:
        for _ in range(mails):
            maildir.add(mime)

    return store


WAYS = {"mqcore": by_mqcore, "standard library": by_mailbox}

if __name__ == "__main__":
    way, path, mails, group, size = sys.argv[1:]
    store = WAYS[way](path, HEADER.ljust(int(size), b"x"), int(mails), int(group))
    before = resource.getrusage(resource.RUSAGE_SELF)
    store()
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    print(*(round(1e9 * each / int(mails)) for each in seconds))
