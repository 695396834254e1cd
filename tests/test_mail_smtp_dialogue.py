"""SMTP as the server speaks it, without a socket: every command, every limit, every way to be wrong."""

from __future__ import annotations

import base64

import pytest
from smtp_tools import EHLO, OPEN, Talk, codes, converse

from mqcore.mail.smtp_dialogue import (
    Authenticate,
    Dialogue,
    MailFrom,
    Message,
    RcptTo,
    Service,
    StartTls,
    format_reply,
)

MAIL = b"MAIL FROM:<a@example.org>\r\n"
RCPT = b"RCPT TO:<b@example.org>\r\n"
TEXT = b"Subject: hello\r\n\r\nhello\r\n"


def one(talk: Talk, data: bytes) -> str:
    (reply,) = talk.say(data)
    return reply


def b64(text: str) -> bytes:
    return base64.b64encode(text.encode())


# A conversation


def test_a_whole_conversation():
    talk = Talk()
    assert talk.out == b"220 mx.example ESMTP\r\n"
    assert talk.say(EHLO) == [
        "250-mx.example",
        "250-PIPELINING",
        "250-SIZE 52428800",
        "250-8BITMIME",
        "250-SMTPUTF8",
        "250 ENHANCEDSTATUSCODES",
    ]
    assert talk.dialogue.helo == "client.example"
    assert one(talk, MAIL) == "250 2.1.0 sender ok"
    assert one(talk, RCPT) == "250 2.1.5 recipient ok"
    assert one(talk, b"DATA\r\n") == "354 end with CR LF . CR LF"
    assert one(talk, TEXT + b".\r\n") == "250 2.6.0 message accepted"
    assert one(talk, b"QUIT\r\n") == "221 2.0.0 bye"
    assert talk.dialogue.closed
    assert talk.events == [MailFrom("a@example.org"), RcptTo("b@example.org"), Message(TEXT)]


def test_commands_in_any_case_and_helo():
    talk = Talk()
    assert one(talk, b"helo client\r\n") == "250 mx.example"
    assert codes(talk.say(b"mail from:<a@b>\r\nrcpt TO:<c@d>\r\nData\r\n")) == ["250 2.1.0", "250 2.1.5", "354"]


def test_all_in_one_piece_is_answered_in_order():
    events, out, closed = converse([OPEN + TEXT + b".\r\n" + MAIL + RCPT + b"DATA\r\n.\r\nNOOP\r\nQUIT\r\n"])
    assert events == [MailFrom("a@example.org"), RcptTo("b@example.org"), Message(TEXT), *events[:2], Message(b"")]
    replies = [line for line in out.decode().split("\r\n") if line[3:4] != "-"]
    assert codes(replies[2:-1]) == [
        *("250 2.1.0", "250 2.1.5", "354", "250 2.6.0"),
        *("250 2.1.0", "250 2.1.5", "354", "250 2.6.0"),
        *("250 2.0.0", "221 2.0.0"),
    ]
    assert closed


def test_commands_wait_behind_an_event_that_is_not_answered_yet():
    dialogue = Dialogue(Service(name="mx.example"))
    dialogue.receive(EHLO + MAIL + RCPT + b"NOOP\r\n")
    assert dialogue.next_event() is None
    assert dialogue.take_output() == b""
    dialogue.accept()
    assert dialogue.next_event() == MailFrom("a@example.org")
    assert dialogue.next_event() is None
    assert dialogue.take_output().endswith(b"ENHANCEDSTATUSCODES\r\n")
    dialogue.reject(550, "not you")
    assert dialogue.next_event() is None
    assert codes(dialogue.take_output().decode().split("\r\n")[:-1]) == ["550 5.7.1", "503 5.5.1", "250 2.0.0"]
    assert dialogue.buffered == 0


EVERYTHING = (
    b"NOOP\r\n" + OPEN + b"..\r\n..a.\r\n. b\r\n\r\n.\r\n"
    b"VRFY x\r\nHELP\r\nRSET\r\nBAD\r\nMAIL FROM:<\xc3\xa9@example.org> SMTPUTF8 BODY=8BITMIME SIZE=10\r\n"
    b"RCPT TO:<x@y>\r\nRCPT TO:<x@y>\r\nDATA\r\nbare\nline\r\n.\r\nAUTH PLAIN\r\nAGEAYg==\r\nNO\0OP\r\nNOOP\nNOOP\r\nQUIT\r\n"
)


def test_wherever_the_bytes_are_split_the_result_is_the_same():
    options = {"auth": True, "auth_without_tls": True}
    whole = converse([EVERYTHING], **options)
    assert whole[0][2] == Message(b".\r\n.a.\r\n b\r\n\r\n")
    assert Authenticate("a", "b") in whole[0]
    assert whole[2]
    for at in range(1, len(EVERYTHING)):
        assert converse([EVERYTHING[:at], EVERYTHING[at:]], **options) == whole
    for size in (1, 2, 3, 5, 7):
        pieces = [EVERYTHING[at : at + size] for at in range(0, len(EVERYTHING), size)]
        assert converse(pieces, **options) == whole


# Commands


@pytest.mark.parametrize(
    ("before", "command", "code"),
    [
        (b"", b"MAIL FROM:<a@b>", "503 5.5.1"),
        (b"", b"RCPT TO:<a@b>", "503 5.5.1"),
        (b"", b"DATA", "503 5.5.1"),
        (EHLO, b"RCPT TO:<a@b>", "503 5.5.1"),
        (EHLO, b"DATA", "503 5.5.1"),
        (EHLO + MAIL, b"DATA", "554 5.5.1"),
        (EHLO + MAIL, b"MAIL FROM:<a@b>", "503 5.5.1"),
        (EHLO + MAIL + b"RSET\r\n", b"RCPT TO:<a@b>", "503 5.5.1"),
        (EHLO + MAIL + EHLO, b"RCPT TO:<a@b>", "503 5.5.1"),
        (EHLO + MAIL + RCPT, b"DATA now", "501 5.5.4"),
        (EHLO, b"STARTTLS", "503 5.5.1"),
        (EHLO, b"AUTH PLAIN", "503 5.5.1"),
        (b"", b"EHLO", "501 5.5.4"),
        (b"", b"HELO", "501 5.5.4"),
        (b"", b"EHLO two names", "501 5.5.4"),
        (b"", "EHLO \u00e9".encode(), "501 5.5.4"),
        (b"", b"", "500 5.5.1"),
        (b"", b" ", "500 5.5.1"),
        (b"", b"BDAT 10", "500 5.5.1"),
        (b"", b"EHLOx y", "500 5.5.1"),
        (b"", b"NOOP \xff", "501 5.5.2"),
        (b"", b"NOOP \0", "500 5.5.2"),
        (b"", b"NOOP\rNOOP", "500 5.5.2"),
        (b"", "NOOP \u0085".encode(), "500 5.5.2"),
        (b"", "NOOP \u2028".encode(), "500 5.5.2"),
        (b"", b"NOOP anything", "250 2.0.0"),
        (b"", b"RSET", "250 2.0.0"),
        (b"", b"RSET ", "250 2.0.0"),
        (b"", b"VRFY", "252 2.5.0"),
        (b"", b"HELP MAIL", "214 2.0.0"),
    ],
)
def test_the_reply_to_a_command(before, command, code):
    talk = Talk()
    talk.say(before)
    assert codes(talk.say(command + b"\r\n")) == [code]


def test_a_line_that_ends_in_lf_alone_is_not_obeyed():
    talk = Talk()
    talk.say(EHLO)
    assert one(talk, b"MAIL FROM:<a@b>\n").startswith("500 5.5.2 lines must end in CR LF")
    assert talk.events == []


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("<>", ""),
        ("<a@b>", "a@b"),
        (" <a@b>", "a@b"),
        ("<a.b+c=d@mail.example.org>", "a.b+c=d@mail.example.org"),
        ('<"a b>"@example.org>', '"a b>"@example.org'),
        (r'<"a\"b"@example.org>', r'"a\"b"@example.org'),
        ("<a@[192.0.2.1]>", "a@[192.0.2.1]"),
        ("<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]"),
        ("<@relay.example,@other.example:a@b>", "a@b"),
        ("<" + "a" * 250 + "@b.c>", "a" * 250 + "@b.c"),
        ("<" + "a" * 251 + "@b.c>", "553 5.1.0"),
        ("<a b@c>", "501 5.1.7"),
        ("<a@b", "501 5.1.7"),
        ("a@b", "501 5.1.7"),
        ("<a>", "501 5.1.7"),
        ("<a@>", "501 5.1.7"),
        ("<a@b..c>", "501 5.1.7"),
        ("<@b>", "501 5.1.7"),
        ("<a@b><c@d>", "501 5.1.7"),
        ("<a@b>x", "501 5.1.7"),
        ("<a,b@c>", "501 5.1.7"),
        ('<"a@b>', "501 5.1.7"),
        ("", "501 5.1.7"),
        ("<\u00e9@b>", "553 5.6.7"),
        ("<\u00e9@b> SMTPUTF8", "\u00e9@b"),
        ("<" + "\u00e9" * 126 + "@b> SMTPUTF8", "\u00e9" * 126 + "@b"),
        ("<" + "\u00e9" * 127 + "@b> SMTPUTF8", "553 5.1.0"),
        ("<a@b> SIZE=100", "a@b"),
        ("<a@b> size=52428800 body=8bitmime", "a@b"),
        ("<a@b> SIZE=52428801", "552 5.3.4"),
        ("<a@b> SIZE=99999999999999999999", "552 5.3.4"),
        ("<a@b> SIZE=999999999999999999999", "501 5.5.4"),
        ("<a@b> SIZE=-1", "501 5.5.4"),
        ("<a@b> SIZE=\u0661", "501 5.5.4"),
        ("<a@b> SIZE", "501 5.5.4"),
        ("<a@b> SIZE=1 SIZE=2", "501 5.5.4"),
        ("<a@b> BODY=7BIT", "a@b"),
        ("<a@b> BODY=BINARYMIME", "501 5.5.4"),
        ("<a@b> BODY", "501 5.5.4"),
        ("<a@b> SMTPUTF8=1", "501 5.5.4"),
        ("<a@b> RET=HDRS", "555 5.5.4"),
        ("<a@b> AUTH=<>", "555 5.5.4"),
        ("<a@b> =1", "501 5.5.4"),
    ],
)
def test_the_sender(address, taken):
    talk = Talk()
    talk.say(EHLO)
    reply = one(talk, f"MAIL FROM:{address}\r\n".encode())
    if talk.events:
        assert reply == "250 2.1.0 sender ok"
        assert talk.events == [MailFrom(taken)]
    else:
        assert codes([reply]) == [taken]


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("<a@b>", "a@b"),
        ("<Postmaster>", "Postmaster"),
        ("<@relay:postmaster>", "postmaster"),
        ("<>", "501 5.1.3"),
        ("<abuse>", "501 5.1.3"),
        ("<a@b> NOTIFY=NEVER", "555 5.5.4"),
        ("<\u00e9@b>", "553 5.6.7"),
        ("<" + "a" * 251 + "@b.c>", "553 5.1.0"),
    ],
)
def test_a_recipient(address, taken):
    talk = Talk()
    talk.say(EHLO + MAIL)
    reply = one(talk, f"RCPT TO:{address}\r\n".encode())
    if len(talk.events) > 1:
        assert reply == "250 2.1.5 recipient ok"
        assert talk.events[1:] == [RcptTo(taken)]
    else:
        assert codes([reply]) == [taken]


def test_smtputf8_holds_for_the_transaction():
    talk = Talk()
    talk.say(EHLO + b"MAIL FROM:<> SMTPUTF8\r\n")
    assert codes(talk.say("RCPT TO:<\u00e9@b>\r\n".encode())) == ["250 2.1.5"]
    talk.say(b"RSET\r\n" + MAIL)
    assert codes(talk.say("RCPT TO:<\u00e9@b>\r\n".encode())) == ["553 5.6.7"]


# Limits


def test_a_line_that_is_too_long():
    talk = Talk(max_line=100)
    assert one(talk, b"NOOP " + b"x" * 93 + b"\r\n") == "250 2.0.0 ok"
    assert one(talk, b"NOOP " + b"x" * 94 + b"\r\n") == "500 5.5.2 this line is too long"
    for _ in range(1000):
        assert talk.say(b"x" * 1000) == []
        assert talk.dialogue.buffered == 0
    assert talk.say(b"x\r\nNOOP\r\n") == ["500 5.5.2 this line is too long", "250 2.0.0 ok"]


def test_a_line_that_is_too_long_ends_an_auth_exchange():
    talk = Talk(auth=True, auth_without_tls=True)
    talk.say(EHLO + b"AUTH PLAIN\r\n")
    assert codes(talk.say(b"x" * 5000 + b"\r\nNOOP\r\n")) == ["500 5.5.2", "250 2.0.0"]


def test_more_recipients_than_allowed_are_told_to_come_later():
    talk = Talk(max_recipients=2)
    talk.say(EHLO + MAIL)
    assert codes(talk.say(RCPT * 30)) == ["250 2.1.5"] * 2 + ["452 4.5.3"] * 28
    assert codes(talk.say(b"DATA\r\n" + TEXT + b".\r\n" + MAIL + RCPT)) == [
        "354", "250 2.6.0", "250 2.1.0", "250 2.1.5",
    ]  # fmt: skip


@pytest.mark.parametrize("pieces", [1, 10])
def test_a_message_that_is_too_big(pieces):
    talk = Talk(max_message=1000)
    talk.say(OPEN)
    fits = b"x" * 998 + b"\r\n"
    assert codes(talk.say(fits + b".\r\n")) == ["250 2.6.0"]
    assert talk.events[-1] == Message(fits)
    talk.say(MAIL + RCPT + b"DATA\r\n")
    for _ in range(pieces):
        assert talk.say(b"x" * 100 + b"\r\n") == []
    assert talk.dialogue.incoming.size == pieces * 102 - 2
    assert talk.say(fits[pieces * 102 - 1 :] + b"\r\n.\r\nMAIL FROM:<>\r\n")[0] == "552 5.3.4 a message may have 1000 octets"
    assert talk.events[-1] == MailFrom("")


def test_of_a_message_that_is_too_big_nothing_is_kept_and_one_without_an_end_is_cut_off():
    talk = Talk(max_message=10_000)
    talk.say(OPEN)
    for _ in range(29):
        assert talk.say(b"x" * 1000) == []
        assert talk.dialogue.incoming.kept <= 10_010
    assert talk.dialogue.incoming.kept < 10
    assert codes(talk.say(b"x" * 1003)) == ["552 5.3.4"]
    assert talk.dialogue.closed


def test_a_line_of_a_message_that_is_too_long():
    talk = Talk(max_message_line=100)
    talk.say(OPEN)
    lines = b"x" * 97 + b"\r\n" + b"x\r\n" * 100 + b"x" * 98 + b"\r\n"
    assert codes(talk.say(lines + b".\r\n")) == ["250 2.6.0"]
    for place in (lines + b"x" * 101 + b"\r\n", b"x" * 101 + b"\r\n" + lines):
        talk.say(MAIL + RCPT + b"DATA\r\n")
        assert talk.say(place + b".\r\n") == ["554 5.6.0 a line of this message is too long"]


def test_too_many_errors_end_the_connection():
    talk = Talk(max_errors=3)
    assert codes(talk.say(b"BAD\r\n" * 10)) == ["500 5.5.1"] * 4 + ["421 4.7.0"]
    assert talk.dialogue.closed
    assert talk.say(b"NOOP\r\n") == []


def test_commands_that_move_no_mail_are_counted_from_mail_to_mail():
    talk = Talk(max_errors=1, max_idle_commands=5)
    talk.say(EHLO)
    assert codes(talk.say(b"NOOP\r\n" * 4)) == ["250 2.0.0"] * 4
    assert codes(talk.say(MAIL + RCPT + b"DATA\r\n.\r\n"))[-1] == "250 2.6.0"
    assert codes(talk.say(b"NOOP\r\nRSET\r\nVRFY\r\n" * 10)) == [
        *("250 2.0.0", "250 2.0.0", "252 2.5.0"),
        *("250 2.0.0", "250 2.0.0", "252 2.5.0"),
        *("250 2.0.0", "421 4.7.0"),
    ]


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"POST /x HTTP/1.0", b"Host: mx.example", b"X-Any_thing:"])
def test_a_web_browser_is_sent_away(line):
    events, out, closed = converse([line + b"\r\n" + OPEN])
    assert (events, closed) == ([], True)
    assert out.endswith(b"421 4.7.0 this is no web server\r\n")


# The message

SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nsmuggled\r\n"


@pytest.mark.parametrize(
    "end",
    [
        b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\r\n\r.\r\n", b"\r\n.\r\r\n", b"\r\r\n.\r\r\n",
        b"\n\n.\n\n", b"\r\n\n.\r\n", b"\n.\r", b"\r.\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\n\r.\r\n",
    ],
)  # fmt: skip
def test_what_another_server_may_take_for_the_end_of_a_message(end):
    """The rest of it is part of the message, and that is refused as a whole."""
    for start in (b"Subject: outer\r\n\r\nouter", b""):
        events, out, closed = converse([OPEN + start + end + SMUGGLED + b"\r\n.\r\n"])
        assert events == [MailFrom("a@example.org"), RcptTo("b@example.org")]
        assert out.decode().split("\r\n")[-2].startswith("554 5.6.0 ")
        assert not closed


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (b"", b""),
        (b"\r\n", b"\r\n"),
        (b"..\r\n", b".\r\n"),
        (b".a\r\n", b"a\r\n"),
        (b"..a\r\n...\r\n", b".a\r\n..\r\n"),
        (b"a.\r\nb.c\r\n", b"a.\r\nb.c\r\n"),
        (b"\xff\x80 8-bit\r\n", b"\xff\x80 8-bit\r\n"),
    ],
)
def test_dots(sent, meant):
    events, _, _ = converse([OPEN + sent + b".\r\n"])
    assert events[-1] == Message(meant)


def test_nul_is_refused():
    events, out, _ = converse([OPEN + b"a\0b\r\n.\r\n"])
    assert b"554 5.6.0 a message may not have NUL in it\r\n" in out
    assert len(events) == 2


def test_a_refused_message_ends_its_transaction():
    talk = Talk()
    talk.say(OPEN)
    assert codes(talk.say(b"a\nb\r\n.\r\n" + RCPT + MAIL)) == ["554 5.6.0", "503 5.5.1", "250 2.1.0"]


def test_the_host_may_refuse_a_message_while_it_comes():
    talk = Talk()
    talk.say(OPEN + b"a" * 1000)
    talk.dialogue.incoming.refuse("452 4.3.1 no room")
    talk.say(b"a" * 1000)
    assert (talk.dialogue.incoming.size, talk.dialogue.incoming.kept) == (1998, 5)
    assert talk.say(b"\r\n.\r\n") == ["452 4.3.1 no room"]


# Refusals


def test_a_client_that_is_refused_in_place_of_the_greeting():
    dialogue = Dialogue(Service(name="mx.example"))
    dialogue.reject(554, "not from your address")
    dialogue.receive(EHLO + MAIL + b"QUIT\r\n")
    assert dialogue.next_event() is None
    assert dialogue.take_output() == b"554 5.7.1 not from your address\r\n" * 3 + b"221 2.0.0 bye\r\n"


def test_421_closes_the_connection_at_any_stage():
    def answer(dialogue, event):
        dialogue.reject(421, "4.3.2 try another server")

    events, out, closed = converse([EHLO + MAIL + b"NOOP\r\n"], answer=answer)
    assert (len(events), closed) == (1, True)
    assert out.endswith(b"ENHANCEDSTATUSCODES\r\n421 4.3.2 try another server\r\n")


def test_a_rejected_recipient_does_not_count():
    def answer(dialogue, event):
        if isinstance(event, RcptTo) and event.address.startswith("no"):
            dialogue.reject(550, "5.1.1 no such user")
        else:
            dialogue.accept()

    talk = Talk(answer)
    talk.say(EHLO + MAIL)
    assert talk.say(b"RCPT TO:<no@b>\r\nDATA\r\n") == ["550 5.1.1 no such user", "554 5.5.1 no valid recipients"]
    assert codes(talk.say(RCPT + b"DATA\r\n")) == ["250 2.1.5", "354"]


def test_a_rejected_message_ends_its_transaction():
    def answer(dialogue, event):
        if isinstance(event, Message):
            dialogue.reject(451, "4.3.0 later")
        else:
            dialogue.accept()

    talk = Talk(answer)
    assert talk.say(OPEN + b".\r\n" + RCPT + MAIL)[-3:] == [
        "451 4.3.0 later",
        "503 5.5.1 say MAIL first",
        "250 2.1.0 sender ok",
    ]


@pytest.mark.parametrize(
    ("code", "text", "reply"),
    [
        (550, "no", "550 5.7.1 no"),
        (450, "later", "450 4.7.1 later"),
        (550, "5.1.1 no such user", "550 5.1.1 no such user"),
        (550, "n\u00e9\0\t", "550 5.7.1 n???"),
        (550, "x" * 600, "550 5.7.1 " + "x" * 494),
    ],
)
def test_the_text_of_a_reply(code, text, reply):
    assert format_reply(code, text) == reply


def test_shutting_down_waits_for_the_end_of_the_transaction():
    idle = Talk()
    idle.say(EHLO)
    idle.dialogue.shut_down()
    assert idle.say(b"") == ["421 4.3.2 this server is shutting down"]
    busy = Talk()
    busy.say(OPEN)
    busy.dialogue.shut_down()
    assert busy.say(b"") == []
    assert codes(busy.say(b".\r\n" + MAIL)) == ["250 2.6.0", "421 4.3.2"]
    assert busy.dialogue.closed


def test_giving_up():
    talk = Talk()
    talk.say(OPEN)
    talk.dialogue.give_up(421, "4.4.2 you are too slow")
    assert talk.dialogue.take_output() == b"421 4.4.2 you are too slow\r\n"
    assert talk.dialogue.closed


# TLS and AUTH


def test_starttls():
    talk = Talk(starttls=True, auth=True)
    extensions = talk.say(EHLO)
    assert "250-STARTTLS" in extensions and "250-AUTH PLAIN LOGIN" not in extensions
    assert codes(talk.say(b"STARTTLS now\r\n")) == ["501 5.5.4"]
    assert codes(talk.say(b"AUTH PLAIN\r\n")) == ["538 5.7.11"[:9]]
    talk.say(MAIL)
    assert one(talk, b"STARTTLS\r\n") == "220 2.0.0 go ahead"
    assert talk.events[-1] == StartTls()
    assert codes(talk.say(RCPT + MAIL)) == ["503 5.5.1", "503 5.5.1"]
    extensions = talk.say(EHLO)
    assert "250-STARTTLS" not in extensions and "250-AUTH PLAIN LOGIN" in extensions
    assert codes(talk.say(b"STARTTLS\r\n")) == ["503 5.5.1"]
    assert codes(talk.say(b"MAIL FROM:<a@b> AUTH=<>\r\n")) == ["250 2.1.0"]


def test_what_is_sent_behind_starttls_in_the_clear_is_refused():
    events, out, closed = converse([EHLO + b"STARTTLS\r\nMAIL FROM:<evil@example.org>\r\n"], starttls=True)
    assert events == []
    assert out.endswith(b"\r\n554 5.5.1 nothing may follow STARTTLS before its reply\r\n")
    assert closed


def test_what_comes_while_tls_is_being_accepted_waits():
    dialogue = Dialogue(Service(name="mx.example", starttls=True))
    dialogue.accept()
    dialogue.receive(EHLO + b"STARTTLS\r\n")
    assert dialogue.next_event() == StartTls()
    assert dialogue.take_output().endswith(b"220 2.0.0 go ahead\r\n")
    dialogue.secured()
    dialogue.receive(EHLO + MAIL)
    assert dialogue.next_event() is None and dialogue.waiting
    dialogue.accept()
    assert dialogue.next_event() == MailFrom("a@example.org")


@pytest.mark.parametrize(("code", "closed"), [(554, False), (421, True)])
def test_a_client_that_is_refused_when_tls_has_begun(code, closed):
    def answer(dialogue, event):
        dialogue.secured()
        dialogue.reject(code, "no certificate of yours is known")

    talk = Talk(answer, starttls=True)
    assert talk.say(EHLO + b"STARTTLS\r\n")[-1] == "220 2.0.0 go ahead"
    assert codes(talk.say(EHLO)) == [f"{code} {code // 100}.7.1"]
    assert talk.dialogue.closed is closed


PLAIN = b64("\0login\0secret")


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"AUTH PLAIN " + PLAIN, ["235 2.7.0"]),
        (b"auth plain " + PLAIN, ["235 2.7.0"]),
        (b"AUTH PLAIN\r\n" + PLAIN, ["334", "235 2.7.0"]),
        (b"AUTH PLAIN " + b64("login\0login\0secret"), ["235 2.7.0"]),
        (b"AUTH LOGIN\r\n" + b64("login") + b"\r\n" + b64("secret"), ["334", "334", "235 2.7.0"]),
        (b"AUTH LOGIN " + b64("login") + b"\r\n" + b64("secret"), ["334", "235 2.7.0"]),
        (b"AUTH PLAIN\r\n*", ["334", "501 5.7.0"]),
        (b"AUTH LOGIN\r\n*", ["334", "501 5.7.0"]),
        (b"AUTH LOGIN\r\n" + b64("login") + b"\r\n*", ["334", "334", "501 5.7.0"]),
        (b"AUTH PLAIN x", ["501 5.5.2"]),
        (b"AUTH PLAIN " + b64("\0login"), ["501 5.5.2"]),
        (b"AUTH PLAIN " + b64("other\0login\0secret"), ["535 5.7.8"]),
        (b"AUTH PLAIN " + base64.b64encode(b"\0\xff\0x"), ["501 5.5.2"]),
        (b"AUTH PLAIN =", ["501 5.5.2"]),
        (b"AUTH CRAM-MD5", ["504 5.5.4"]),
        (b"AUTH", ["504 5.5.4"]),
    ],
)
def test_auth(sent, says):
    talk = Talk(auth=True, secure=True)
    talk.say(EHLO)
    assert codes(talk.say(sent + b"\r\n")) == says
    accepted = says[-1] == "235 2.7.0"
    assert talk.events == [Authenticate("login", "secret")] * accepted
    assert talk.dialogue.authenticated is accepted


def test_the_prompts_of_auth_login_are_what_clients_know():
    talk = Talk(auth=True, secure=True)
    talk.say(EHLO)
    assert one(talk, b"AUTH LOGIN\r\n") == "334 " + b64("Username:").decode()
    assert one(talk, b"=\r\n") == "334 " + b64("Password:").decode()
    talk.say(b"=\r\n")
    assert talk.events == [Authenticate("", "")]


def test_auth_that_is_refused_counts_as_an_error_and_may_be_tried_again():
    talk = Talk(lambda dialogue, event: dialogue.reject(535, "5.7.8 wrong"), auth=True, secure=True, max_errors=2)
    talk.say(EHLO)
    assert codes(talk.say((b"AUTH PLAIN " + PLAIN + b"\r\n") * 4)) == ["535 5.7.8"] * 3 + ["421 4.7.0"]


def test_auth_comes_once_and_not_in_a_transaction():
    talk = Talk(auth=True, secure=True)
    auth = b"AUTH PLAIN " + PLAIN + b"\r\n"
    assert codes(talk.say(auth)) == ["503 5.5.1"]
    talk.say(EHLO + MAIL)
    assert codes(talk.say(auth)) == ["503 5.5.1"]
    assert codes(talk.say(b"RSET\r\n" + auth + auth)) == ["250 2.0.0", "235 2.7.0", "503 5.5.1"]


def test_auth_without_tls_only_where_it_is_allowed():
    talk = Talk(auth=True, auth_without_tls=True)
    assert "250-AUTH PLAIN LOGIN" in talk.say(EHLO)
    assert codes(talk.say(b"AUTH PLAIN " + PLAIN + b"\r\n")) == ["235 2.7.0"]
