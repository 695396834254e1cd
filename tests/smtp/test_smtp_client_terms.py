"""What a mail is sent with, by what the client before said of it and by what the next server offers."""

from __future__ import annotations

import pytest

from mqcore.smtp.client import ClientProtocol, Terms
from mqcore.smtp.content import make_content
from mqcore.smtp.replies import Reply

ALL = ("SIZE", "8BITMIME", "SMTPUTF8", "PIPELINING", "BINARYMIME", "CHUNKING")
NUL = b"Subject: x\r\n\r\n.\0\r\n.\r\n"


def ready(*extensions: str, lmtp: bool = False) -> ClientProtocol:
    protocol = ClientProtocol("client.example", lmtp=lmtp)
    protocol.receive(b"220 mx.example\r\n")
    protocol.take_output()
    assert protocol.receive("".join(f"250-{word}\r\n" for word in ("mx", *extensions)).encode() + b"250 HELP\r\n")
    return protocol


def said(protocol: ClientProtocol, *replies: bytes) -> tuple[list[bytes], Reply | None]:
    """All that is sent, while these replies come, and how it ends."""
    out, end = [protocol.take_output()], None
    for reply in replies:
        assert end is None
        end = protocol.receive(reply)
        out.append(protocol.take_output())
    return out, end


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_nul_goes_by_bdat(pipelining):
    protocol = ready(*(word for word in ALL if pipelining or word != "PIPELINING"))
    protocol.send("a@b", ["c@d", "e@f"], make_content(NUL))
    out, end = said(protocol, b"250 ok\r\n", b"250 ok\r\n", b"550 no\r\n", b"250 taken\r\n")
    assert b" BODY=BINARYMIME\r\n" in out[0] and b"DATA" not in b"".join(out)
    assert out[-2] == b"BDAT %d LAST\r\n" % len(NUL) + NUL
    assert end == Reply("message", 250, "taken")
    assert {to: reply.code for to, reply in protocol.replies.items()} == {"c@d": 250, "e@f": 550}
    assert protocol.is_idle


def test_a_nul_goes_by_bdat_in_lmtp():
    protocol = ready(*ALL, lmtp=True)
    protocol.send("a@b", ["c@d", "e@f"], make_content(NUL))
    _, end = said(protocol, b"250 ok\r\n", b"250 ok\r\n", b"250 ok\r\n", b"250 taken\r\n", b"452 full\r\n")
    assert end is not None and {to: reply.code for to, reply in protocol.replies.items()} == {"c@d": 250, "e@f": 452}


def test_what_goes_by_bdat_is_in_doubt_when_the_connection_breaks():
    protocol = ready(*ALL)
    protocol.send("a@b", ["c@d"], make_content(NUL))
    said(protocol, b"250 ok\r\n")
    assert not protocol.in_doubt
    said(protocol, b"250 ok\r\n")
    assert protocol.in_doubt and protocol.state == "message"


@pytest.mark.parametrize("missing", ["BINARYMIME", "CHUNKING"])
def test_a_nul_goes_to_nobody_who_did_not_offer_to_take_it(missing):
    protocol = ready(*(word for word in ALL if word != missing))
    end = protocol.send("a@b", ["c@d"], make_content(NUL))
    assert end == Reply("mailfrom", 554, "5.6.0 the next server takes no message with a NUL in it")
    assert protocol.take_output() == b""
    assert protocol.send("a@b", ["c@d"], make_content(NUL), terms=Terms(lenient=True)) is None  # but where it came from one
    out, _ = said(protocol, b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n")
    assert b"DATA\r\n" in out[0] and out[-1] == make_content(NUL) == NUL.replace(b"\r\n.", b"\r\n..") + b".\r\n"


@pytest.mark.parametrize(
    ("terms", "sender", "extensions", "command"),
    [
        (Terms(), "é@b", ALL, "MAIL FROM:<é@b> SIZE=3 SMTPUTF8".encode()),
        (Terms(), "é@b", (), None),
        (Terms(), "a@b", ALL, b"MAIL FROM:<a@b> SIZE=3"),
        (Terms(utf8=True), "a@b", ALL, b"MAIL FROM:<a@b> SIZE=3 SMTPUTF8"),
        (Terms(utf8=True), "a@b", (), b"MAIL FROM:<a@b>"),
        (Terms(utf8=True), "é@b", (), None),
        (Terms(utf8=False, lenient=True), "é@b", ALL, "MAIL FROM:<é@b> SIZE=3".encode()),
        (Terms(utf8=False, lenient=True), "é@b", (), "MAIL FROM:<é@b>".encode()),
        (Terms(utf8=False, lenient=True), "\udce9@b", (), b"MAIL FROM:<\xe9@b>"),
    ],
)
def test_addresses_that_are_not_ascii(terms, sender, extensions, command):
    protocol = ready(*extensions)
    end = protocol.send(sender, ["c@d"], make_content(b""), terms=terms)
    assert (end is None) == (command is not None)
    if command is None:
        assert end == Reply("mailfrom", 553, "5.6.7 the next server takes ASCII addresses only")
    else:
        assert protocol.take_output().split(b"\r\n")[0] == command


def test_bytes_that_are_no_text_are_sent_to_nobody_else():
    with pytest.raises(ValueError, match="cannot be sent as addresses"):
        ready().send("\udce9@b", ["c@d"], make_content(b""), terms=Terms(utf8=False))
