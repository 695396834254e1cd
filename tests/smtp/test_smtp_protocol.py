"""SMTP as the server speaks it, without a socket: every command, every limit, every way to be wrong."""

from __future__ import annotations

import pytest
from smtp_tools import EHLO, MAIL, OPEN, RCPT, TEXT, Talk, codes, converse, grows_by

from mqcore.smtp._protocol import ServerProtocol
from mqcore.smtp.events import Authenticate, MailFrom, Message, RcptTo, Service

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
    assert talk.protocol.helo == "client.example"
    assert talk.ask(MAIL) == "250 2.1.0 sender ok"
    assert talk.ask(RCPT) == "250 2.1.5 recipient ok"
    assert talk.ask(b"DATA\r\n") == "354 end with CR LF . CR LF"
    assert talk.ask(TEXT + b".\r\n") == "250 2.6.0 message accepted"
    assert talk.ask(b"QUIT\r\n") == "221 2.0.0 bye"
    assert talk.protocol.closed
    assert talk.events == [MailFrom("a@example.org"), RcptTo("b@example.org"), Message(TEXT)]


def test_commands_in_any_case_and_helo():
    talk = Talk()
    assert talk.ask(b"helo client\r\n") == "250 mx.example"
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
    protocol = ServerProtocol(Service(name="mx.example"))
    protocol.receive(EHLO + MAIL + RCPT + b"NOOP\r\n")
    assert protocol.next_event() is None
    assert protocol.take_output() == b""
    protocol.accept()
    assert protocol.next_event() == MailFrom("a@example.org")
    assert protocol.next_event() is None
    assert protocol.take_output().endswith(b"ENHANCEDSTATUSCODES\r\n")
    protocol.reject(550, "not you")
    assert protocol.next_event() is None
    assert codes(protocol.take_output().decode().split("\r\n")[:-1]) == ["550 5.7.1", "503 5.5.1", "250 2.0.0"]
    assert protocol.buffered == 0


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
        (b"", b"NOOP \xff", "500 5.5.2"),
        (b"", b"\x80NOOP", "500 5.5.2"),
        (EHLO, b"MAIL FROM:<@b>", "553 5.1.7"),
        (EHLO, b"MAIL FROM:<a@b> SIZE 1000", "555 5.5.4"),
        (EHLO, b"MAIL FROM:<a@b> #=1", "501 5.5.4"),
        (b"", b"NOOP \0", "500 5.5.2"),
        (b"", b"NOOP\rNOOP", "500 5.5.2"),
        (b"", "NOOP \u0085".encode(), "500 5.5.2"),
        (b"", "NOOP \u2028".encode(), "500 5.5.2"),
        (b"", b"NOOP anything", "250 2.0.0"),
        (b"", b"RSET", "250 2.0.0"),
        (b"", b"RSET ", "250 2.0.0"),
        (b"", b"VRFY x", "252 2.5.0"),
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
    assert talk.ask(b"MAIL FROM:<a@b>\n").startswith("500 5.5.2 lines must end in CR LF")
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
        ("<a b@c>", "553 5.1.7"),
        ("<a@b", "501 5.1.7"),
        ("a@b", "501 5.1.7"),
        ("<a>", "553 5.1.7"),
        ("<a@>", "553 5.1.7"),
        ("<a@b..c>", "553 5.1.7"),
        ("<@b>", "553 5.1.7"),
        ("<a@b><c@d>", "501 5.1.7"),
        ("<a@b>x", "501 5.1.7"),
        ("<a,b@c>", "553 5.1.7"),
        ('<"a@b>', "553 5.1.7"),
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
    reply = talk.ask(f"MAIL FROM:{address}\r\n".encode())
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
        ("<abuse>", "553 5.1.3"),
        ("<a@b> NOTIFY=NEVER", "555 5.5.4"),
        ("<\u00e9@b>", "553 5.6.7"),
        ("<" + "a" * 251 + "@b.c>", "553 5.1.0"),
    ],
)
def test_a_recipient(address, taken):
    talk = Talk()
    talk.say(EHLO + MAIL)
    reply = talk.ask(f"RCPT TO:{address}\r\n".encode())
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
    assert talk.ask(b"NOOP " + b"x" * 93 + b"\r\n") == "250 2.0.0 ok"
    assert talk.ask(b"NOOP " + b"x" * 94 + b"\r\n") == "500 5.5.2 this line is too long"
    for _ in range(1000):
        assert talk.say(b"x" * 1000) == []
        assert talk.protocol.buffered == 0
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
    assert talk.protocol.receiver.size == pieces * 102 - 2
    assert talk.say(fits[pieces * 102 - 1 :] + b"\r\n.\r\nMAIL FROM:<>\r\n")[0] == "552 5.3.4 a message may have 1000 octets"
    assert talk.events[-1] == MailFrom("")


def test_of_a_message_that_is_too_big_nothing_is_kept_and_one_without_an_end_is_cut_off():
    talk = Talk(max_message=1_000_000)
    talk.say(OPEN)
    with grows_by(most=200_000):
        for _ in range(29):
            assert talk.say(b"x" * 100_000) == []
    assert codes(talk.say(b"x" * 100_003)) == ["552 5.3.4"]
    assert talk.protocol.closed


def test_too_many_errors_end_the_connection():
    talk = Talk(max_errors=3)
    assert codes(talk.say(b"BAD\r\n" * 10)) == ["500 5.5.1"] * 4 + ["421 4.7.0"]
    assert talk.protocol.closed
    assert talk.say(b"NOOP\r\n") == []


def test_commands_that_move_no_mail_are_counted_from_mail_to_mail():
    talk = Talk(max_errors=1, max_idle_commands=5)
    talk.say(EHLO)
    assert codes(talk.say(b"NOOP\r\n" * 4)) == ["250 2.0.0"] * 4
    assert codes(talk.say(MAIL + RCPT + b"DATA\r\n.\r\n"))[-1] == "250 2.6.0"
    assert codes(talk.say(b"NOOP\r\nRSET\r\nVRFY x\r\n" * 10)) == [
        *("250 2.0.0", "250 2.0.0", "252 2.5.0"),
        *("250 2.0.0", "250 2.0.0", "252 2.5.0"),
        *("250 2.0.0", "421 4.7.0"),
    ]


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"POST /x HTTP/1.0", b"Host: mx.example", b"X-Any_thing:"])
def test_a_web_browser_is_sent_away(line):
    events, out, closed = converse([line + b"\r\n" + OPEN])
    assert (events, closed) == ([], True)
    assert out.endswith(b"421 4.7.0 this is no web server\r\n")


# Small print


@pytest.mark.parametrize(("said", "expected"), [
    (b"QUIT now\r\n", "501 5.5.4 QUIT has no arguments"),
    (b"rset x\r\n", "501 5.5.4 RSET has no arguments"),
    (b"RSET \r\n", "250 2.0.0 ok"),
    (b"STARTTLS x\r\n", "501 5.5.4 STARTTLS has no arguments"),
    (b"NOOP whatever\r\n", "250 2.0.0 ok"),
    (b"EXPN staff\r\n", "502 5.5.1 there are no lists to expand here"),
    (b"VRFY\r\n", "501 5.5.4 say VRFY and an address"),
    (b"AUTH\r\n", "501 5.5.4 say AUTH PLAIN or AUTH LOGIN"),
    (b"AUTH NTLM\r\n", "504 5.5.4 PLAIN and LOGIN are known here"),
])
def test_arguments(said, expected):
    talk = Talk(auth=True, auth_without_tls=True, starttls=True)
    talk.say(EHLO)
    assert talk.ask(said) == expected
    assert talk.ask(b"QUIT\r\n") == "221 2.0.0 bye"


def test_helo_is_smtp_without_extensions():
    talk = Talk(auth=True, auth_without_tls=True)
    talk.ask(b"HELO client.example\r\n")
    assert talk.ask(b"AUTH PLAIN AGEAYg==\r\n") == "503 5.5.1 AUTH comes once, after EHLO and before MAIL"
    assert talk.ask(b"MAIL FROM:<a@b.example> SIZE=1\r\n") == "555 5.5.4 parameters are for those who say EHLO"
    assert talk.ask(b"MAIL FROM:<a@b.example>\r\n") == "250 2.1.0 sender ok"
    assert talk.ask(b"RCPT TO:<a@b.example> NOTIFY=NEVER\r\n") == "555 5.5.4 parameters are for those who say EHLO"
    assert codes(talk.say(b"RSET\r\n" + EHLO + b"MAIL FROM:<a@b.example> SIZE=1\r\n"))[-1] == "250 2.1.0"


def test_no_mail_without_tls():
    talk = Talk(require_tls=True, starttls=True, auth=True, auth_without_tls=True)
    talk.say(EHLO)
    for command in (MAIL, RCPT, b"DATA\r\n", b"RSET\r\n", b"VRFY x\r\n", b"AUTH PLAIN AGEAYg==\r\n", b"HELP\r\n", b"X\r\n"):
        assert talk.ask(command) == "530 5.7.0 say STARTTLS first"
    assert talk.ask(b"NOOP\r\n") == "250 2.0.0 ok"
    assert talk.ask(b"HELO x\r\n") == "250 mx.example"
    assert talk.events == []
    talk.ask(b"STARTTLS\r\n")
    talk.protocol.secured()
    talk.say(EHLO)
    assert talk.ask(MAIL) == "250 2.1.0 sender ok"


def test_tls_from_the_start_is_tls():
    protocol = ServerProtocol(Service(name="mx.example", require_tls=True), secure=True)
    protocol.accept()
    protocol.receive(EHLO + MAIL)
    assert protocol.next_event() == MailFrom("a@example.org")


def test_no_mail_without_a_login():
    talk = Talk(require_login=True, auth=True, auth_without_tls=True)
    talk.say(EHLO)
    assert talk.ask(MAIL) == "530 5.7.0 log in first"
    assert talk.ask(b"AUTH PLAIN AGEAYg==\r\n").startswith("235 ")
    assert talk.ask(MAIL) == "250 2.1.0 sender ok"
