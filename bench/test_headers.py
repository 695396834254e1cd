"""The fields of a mail's header, beside the standard library's parser: one of 4 KB, and one of 1 MB."""

from __future__ import annotations

from collections.abc import Callable
from email.message import Message
from email.parser import BytesHeaderParser

import pytest

from mqcore.mail import Mail

HEADER = (
    b"".join(
        b"Received: from mx%d.example.net (mx%d.example.net [192.0.2.%d])\r\n"
        b"\tby mail.example.org (Postfix) with ESMTPS id 4Fz%dk1Sz9sRK\r\n"
        b"\tfor <b@example.org>; Sun, 29 Nov 2026 11:35:3%d +0100 (CET)\r\n" % ((number,) * 5)
        for number in range(4)
    )
    + b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.net; s=mail;\r\n\tt=1764412531; bh=" + b"a" * 44
    + b";\r\n\th=From:To:Subject:Date:Message-ID;\r\n\tb=" + b"b" * 344 + b"\r\n"
    b"Authentication-Results: mail.example.org; dkim=pass header.d=example.net\r\n"
    b"From: Alice Jansen <alice@example.net>\r\nTo: Bob de Wit <b@example.org>\r\n"
    b"Message-ID: <0001.alice@example.net>\r\nDate: Sun, 29 Nov 2026 11:35:30 +0100\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nSubject: Lunch on Thursday?\r\n\r\n"
)
MAILS = {"4 KB": HEADER + b"a line of text\r\n" * 128, "1 MB": HEADER + b"a line of text\r\n" * 65_536}
COUNT = 50
ROUNDS = 20


def parse(mime: bytes) -> Message:
    """With the standard library."""
    return BytesHeaderParser().parsebytes(mime)


def get_again_and_again(mail: Mail) -> None:
    """The last field of its header."""
    for _ in range(COUNT):
        assert mail.headers.get("Subject") is not None


def add_parsed(mime: bytes) -> bytes:
    """A field on top: with the standard library, which adds at the end, one has to put it there."""
    parsed = parse(mime)
    parsed._headers.insert(0, ("X-Tag", "one"))
    return parsed.as_bytes()


def add(mail: Mail, mime: bytes) -> bytes:
    """The same, and all of the mail as it is then."""
    mail.mime = mime
    mail.headers.add("X-Tag", "one")
    return mail.mime


@pytest.mark.parametrize("size", ["4 KB", pytest.param("1 MB", marks=pytest.mark.large)])
def test_get(against: Callable[..., None], size: str) -> None:
    """One field, of a mail of which nothing is known yet."""
    mime, mail = MAILS[size], Mail(MAILS[size])
    contenders = {
        "email": lambda: [parse(mime)["Subject"] for _ in range(COUNT)],
        "mqcore": lambda: get_again_and_again(mail),
    }
    against("headers", f"get, {size}", contenders, rounds=ROUNDS, count=COUNT)


@pytest.mark.parametrize("size", ["4 KB", pytest.param("1 MB", marks=pytest.mark.large)])
def test_add(against: Callable[..., None], size: str) -> None:
    """One field on top, and the bytes of the mail."""
    mime, mail = MAILS[size], Mail(MAILS[size])
    contenders = {
        "email": lambda: [add_parsed(mime) for _ in range(COUNT // 10)],
        "mqcore": lambda: [add(mail, mime) for _ in range(COUNT)],
    }
    against("headers", f"add on top, {size}", contenders, rounds=ROUNDS, count=COUNT, counts={"email": COUNT // 10})
