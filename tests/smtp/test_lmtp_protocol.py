"""LMTP as the server speaks it, without a socket: what is not as in SMTP (RFC 2033)."""

from __future__ import annotations

import pytest
from smtp_tools import EHLO, LHLO, MAIL, RCPT, TEXT, Talk, codes

from mqcore.smtp.events import MailFrom, Message, RcptTo

THREE = MAIL + b"RCPT TO:<one@example.org>\r\nRCPT TO:<two@example.org>\r\nRCPT TO:<one@example.org>\r\nDATA\r\n"
OK = ["250 2.1.0", "250 2.1.5", "250 2.1.5", "250 2.1.5", "354"]
END = TEXT + b".\r\n"


def lmtp(*answers: object, **service: object) -> Talk:
    """One that has said LHLO. `answers` are for events that are not accepted: RCPTs by their address, or else the message."""

    def answer(protocol, event):
        for how in answers:
            if isinstance(how, list):
                if isinstance(event, Message):
                    protocol.answer_each(how)
                    return
            elif isinstance(event, RcptTo if how[2] else Message) and how[2] in (None, getattr(event, "address", None)):
                protocol.reject(how[0], how[1])
                return
        protocol.accept()

    talk = Talk(answer, lmtp=True, **service)
    talk.say(LHLO)
    return talk


def test_the_greeting_and_lhlo():
    talk = Talk(lmtp=True)
    assert talk.out == b"220 mx.example LMTP\r\n"
    assert codes(talk.say(MAIL + EHLO + b"HELO client.example\r\nLHLO\r\n")) == [
        *("503 5.5.1", "500 5.5.1", "500 5.5.1", "501 5.5.4")
    ]
    assert b"say LHLO first" in talk.out and b"LHLO your.host.name" in talk.out
    lines = talk.say(b"lhlo client.example\r\n")
    assert {"250-PIPELINING", "250-8BITMIME", "250 ENHANCEDSTATUSCODES"} <= set(lines)
    assert talk.protocol.helo == "client.example"


def test_smtp_knows_no_lhlo():
    assert codes(Talk().say(LHLO)) == ["500 5.5.1"]


def test_a_reply_for_each_recipient():
    """Also for one who is named twice (RFC 2033, 4.2)."""
    talk = lmtp([(250, "stored as 1"), (550, "5.1.1 no such user"), (250, "")])
    assert codes(talk.say(THREE)) == OK
    assert talk.say(END) == ["250 2.6.0 stored as 1", "550 5.1.1 no such user", "250 2.6.0 message accepted"]
    assert talk.events[0] == MailFrom("a@example.org") and talk.events[-1] == Message(TEXT)
    assert codes(talk.say(RCPT)) == ["503 5.5.1"]  # the transaction is over


def test_the_same_reply_for_each():
    talk = lmtp()
    assert talk.say(THREE + END)[5:] == ["250 2.6.0 message accepted"] * 3
    assert talk.say(MAIL + RCPT + b"DATA\r\n" + END)[3:] == ["250 2.6.0 message accepted"]
    talk = lmtp((554, "5.6.0 I do not like it", None))
    assert talk.say(THREE + END)[5:] == ["554 5.6.0 I do not like it"] * 3


def test_none_for_a_recipient_who_was_refused():
    talk = lmtp((550, "5.1.1 no", "two@example.org"))
    assert codes(talk.say(THREE + END)) == ["250 2.1.0", "250 2.1.5", "550 5.1.1", "250 2.1.5", "354", "250 2.6.0", "250 2.6.0"]


def test_none_for_recipients_of_a_transaction_before():
    talk = lmtp()
    for end in (b"RSET\r\n", LHLO):
        talk.say(MAIL + RCPT + RCPT + end)
        assert codes(talk.say(MAIL + RCPT + b"DATA\r\n" + END)) == ["250 2.1.0", "250 2.1.5", "354", "250 2.6.0"]


def test_no_data_without_a_recipient():
    """503, so that whoever sent it all at once waits for no replies (RFC 2033, 4.2)."""
    talk = lmtp((550, "5.1.1 no", "b@example.org"))
    assert codes(talk.say(MAIL + RCPT + b"DATA\r\nNOOP\r\n")) == ["250 2.1.0", "550 5.1.1", "503 5.5.1", "250 2.0.0"]


@pytest.mark.parametrize(
    ("text", "limits", "reply"),
    [
        (b"bare\nline\r\n", {}, "554 5.6.0"),
        (b"x" * 200 + b"\r\n", {"max_message": 100}, "552 5.3.4"),
        (b"Received: x\r\n" * 101, {}, "554 5.4.6"),
    ],
)
def test_what_is_no_message_is_refused_for_each(text, limits, reply):
    talk = lmtp(**limits)
    assert codes(talk.say(THREE + text + b".\r\nNOOP\r\n"))[5:] == [reply] * 3 + ["250 2.0.0"]


def test_421_for_one_holds_back_no_reply_to_another():
    talk = lmtp([(421, "4.3.2 I go"), (250, "stored as 1"), (250, "stored as 2")])
    assert talk.say(THREE + END + b"NOOP\r\n")[5:] == [
        "451 4.3.2 I go",
        "250 2.6.0 stored as 1",
        "250 2.6.0 stored as 2",
        "421 4.3.2 this server closes the connection",
    ]
    assert talk.protocol.closed


@pytest.mark.parametrize("service", [{"lmtp": True}, {}])
@pytest.mark.parametrize("count", [0, 2])
def test_replies_that_are_not_one_for_each(service, count):
    def answer(protocol, event):
        if isinstance(event, Message):
            with pytest.raises(ValueError, match="no replies to each recipient"):
                protocol.answer_each([(250, "")] * count)
        protocol.accept()

    talk = Talk(answer, **service)
    with pytest.raises(ValueError, match="no replies to each recipient"):
        talk.protocol.answer_each([])
    hello = LHLO if service else EHLO
    assert codes(talk.say(hello + MAIL + RCPT + b"DATA\r\n" + END))[-1] == "250 2.6.0"


def test_the_limit_of_recipients():
    talk = lmtp(max_recipients=2)
    assert codes(talk.say(THREE + END)) == ["250 2.1.0", "250 2.1.5", "250 2.1.5", "452 4.5.3", "354", "250 2.6.0", "250 2.6.0"]
