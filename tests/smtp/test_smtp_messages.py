"""SMTP as the server speaks it, without a socket: messages and what is smuggled in them, refusals, TLS and AUTH."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from smtp_tools import EHLO, MAIL, OPEN, RCPT, Talk, codes, converse, grows_by

from mqcore.smtp._protocol import ServerProtocol
from mqcore.smtp.events import Authenticate, MailFrom, Message, RcptTo, Service, StartTls
from mqcore.smtp.syntax import format_reply


def b64(text: str) -> bytes:
    return base64.b64encode(text.encode())


# The message

SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nsmuggled\r\n"


@pytest.mark.parametrize(
    "end",
    [
        b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\r\n\r.\r\n", b"\r\n.\r\r\n", b"\r\r\n.\r\r\n",
        b"\n\n.\n\n", b"\r\n\n.\r\n", b"\n.\r", b"\r.\n", b"\n\r.\r\n",
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


@pytest.mark.parametrize("text", [b"a\0b\r\n", b"\0.\r\n" + SMUGGLED, b".\0\r\n" + SMUGGLED])
def test_a_nul_is_a_part_of_the_message(text):
    """It was refused, as it could not be sent on; there are servers that take it (RFC 3030), and mailboxes do."""
    events, _, _ = converse([OPEN + b"." * text.startswith(b".") + text + b".\r\n"])
    assert events[2:] == [Message(text)]


@pytest.mark.parametrize("size", [998, 70_000, 900_000])
def test_a_line_may_be_as_long_as_a_message(size):
    """Beyond 65,536 octets it was refused, which Postfix takes."""
    line = b"x" * size + b"\r\n"
    pieces = [OPEN, *(line[at : at + 50_000] for at in range(0, len(line), 50_000)), b".\r\n"]
    assert converse(pieces, max_message=1 << 20)[0][2:] == [Message(line)]


@pytest.mark.parametrize("line", [b"Received: from a by b; now\r\n", b"RECEIVED : from a\r\n\tby b\r\n"])
@pytest.mark.parametrize("rest", [b"", b"\r\nbody\r\n"])
def test_a_mail_that_goes_round_in_a_loop_is_refused(line, rest):
    """Each server that it passes adds a line (RFC 5321, 6.3)."""
    other = b"Subject: Received: no\r\n received: no\r\nX-Received: no\r\n" * 100
    talk = Talk()
    talk.say(OPEN)
    assert codes(talk.say(other + line * 100 + rest + b".\r\n")) == ["250 2.6.0"]
    talk.say(OPEN)
    reply = talk.ask(line * 101 + other + rest + b".\r\n")
    assert reply == "554 5.4.6 this mail goes round in a loop: it has more than 100 Received lines"


def test_lines_of_the_body_are_no_trace():
    talk = Talk()
    for head in (b"Subject: these are the headers of another mail\r\n\r\n", b"\r\n"):
        talk.say(OPEN)
        assert codes(talk.say(head + b"Received: from a by b\r\n" * 1000 + b".\r\n")) == ["250 2.6.0"]


def test_a_refused_message_ends_its_transaction():
    talk = Talk()
    talk.say(OPEN)
    assert codes(talk.say(b"a\nb\r\n.\r\n" + RCPT + MAIL)) == ["554 5.6.0", "503 5.5.1", "250 2.1.0"]


def test_the_host_may_refuse_a_message_while_it_comes():
    talk = Talk()
    talk.say(OPEN)
    with grows_by(most=50_000):  # nothing of it is kept
        for _ in range(10):
            talk.say(b"a" * 10_000)
        talk.protocol.receiver.refuse("452 4.3.1 no room")
        talk.say(b"a" * 10_000)
    assert talk.protocol.receiver.size == 109_998
    assert talk.say(b"\r\n.\r\n") == ["452 4.3.1 no room"]


NO_MEMORY = """
    import resource
    from smtp_tools import MAIL, OPEN, RCPT, Talk, codes

    more, pieces, body = {}
    talk = Talk()
    talk.say(OPEN)
    talk.say(body)  # so that what is limited is the message
    (size,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize:")]
    resource.setrlimit(resource.RLIMIT_AS, ((int(size) << 10) + more, resource.RLIM_INFINITY))
    for _ in range(pieces):
        assert talk.say(body) == []
    assert codes(talk.say(b".\\r\\n")) == ["452 4.3.1"]
    small = MAIL + RCPT + b"DATA\\r\\nsmall\\r\\n.\\r\\n"
    assert codes(talk.say(small)) == ["250 2.1.0", "250 2.1.5", "354", "250 2.6.0"]
    """


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits the memory of a process as Linux does")
@pytest.mark.parametrize(
    "message",
    [
        pytest.param((8 << 20, 800, b"x" * 65_534 + b"\r\n"), id="while it comes"),
        pytest.param((60 << 20, 750, b"x" * 65_534 + b"\r\n"), id="at its end"),
        pytest.param((60 << 20, 750, b"..dots" * 10_922 + b"\r\n"), id="at its end, with dots"),
    ],
)
def test_a_message_for_which_there_is_no_memory(message):
    """It is refused for now, and the connection goes on."""
    program = textwrap.dedent(NO_MEMORY.format(message))
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"PYTHONPATH": path, "MALLOC_TRIM_THRESHOLD_": "0"}
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode == 0, result


# Refusals


def test_a_client_that_is_refused_in_place_of_the_greeting():
    protocol = ServerProtocol(Service(name="mx.example"))
    protocol.reject(554, "not from your address")
    protocol.receive(EHLO + MAIL + b"QUIT\r\n")
    assert protocol.next_event() is None
    assert protocol.take_output() == b"554 5.7.1 not from your address\r\n" * 3 + b"221 2.0.0 bye\r\n"


def test_421_closes_the_connection_at_any_stage():
    def answer(protocol, event):
        protocol.reject(421, "4.3.2 try another server")

    events, out, closed = converse([EHLO + MAIL + b"NOOP\r\n"], answer=answer)
    assert (len(events), closed) == (1, True)
    assert out.endswith(b"ENHANCEDSTATUSCODES\r\n421 4.3.2 try another server\r\n")


def test_a_rejected_recipient_does_not_count():
    def answer(protocol, event):
        if isinstance(event, RcptTo) and event.address.startswith("no"):
            protocol.reject(550, "5.1.1 no such user")
        else:
            protocol.accept()

    talk = Talk(answer)
    talk.say(EHLO + MAIL)
    assert talk.say(b"RCPT TO:<no@b>\r\nDATA\r\n") == ["550 5.1.1 no such user", "554 5.5.1 no valid recipients"]
    assert codes(talk.say(RCPT + b"DATA\r\n")) == ["250 2.1.5", "354"]


def test_a_rejected_message_ends_its_transaction():
    def answer(protocol, event):
        if isinstance(event, Message):
            protocol.reject(451, "4.3.0 later")
        else:
            protocol.accept()

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
        (550, "5.7.1", "550 5.7.1"),
        (550, "n\u00e9\0\t", "550 5.7.1 n???"),
        (550, "x" * 600, "550 5.7.1 " + "x" * 494),
    ],
)
def test_the_text_of_a_reply(code, text, reply):
    assert format_reply(code, text) == reply


def test_shutting_down_waits_for_the_end_of_the_transaction():
    idle = Talk()
    idle.say(EHLO)
    idle.protocol.shut_down()
    assert idle.say(b"") == ["421 4.3.2 this server is shutting down"]
    busy = Talk()
    busy.say(OPEN)
    busy.protocol.shut_down()
    assert busy.say(b"") == []
    assert codes(busy.say(b".\r\n" + MAIL)) == ["250 2.6.0", "421 4.3.2"]
    assert busy.protocol.closed


def test_giving_up():
    talk = Talk()
    talk.say(OPEN)
    talk.protocol.give_up(421, "4.4.2 you are too slow")
    assert talk.protocol.take_output() == b"421 4.4.2 you are too slow\r\n"
    assert talk.protocol.closed


# TLS and AUTH


def test_starttls():
    talk = Talk(starttls=True, auth=True)
    extensions = talk.say(EHLO)
    assert "250-STARTTLS" in extensions and "250-AUTH PLAIN LOGIN" not in extensions
    assert codes(talk.say(b"STARTTLS now\r\n")) == ["501 5.5.4"]
    assert codes(talk.say(b"AUTH PLAIN\r\n")) == ["538 5.7.11"[:9]]
    talk.say(MAIL)
    assert talk.ask(b"STARTTLS\r\n") == "220 2.0.0 go ahead"
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
    protocol = ServerProtocol(Service(name="mx.example", starttls=True))
    protocol.accept()
    protocol.receive(EHLO + b"STARTTLS\r\n")
    assert protocol.next_event() == StartTls()
    assert protocol.take_output().endswith(b"220 2.0.0 go ahead\r\n")
    protocol.secured()
    protocol.receive(EHLO + MAIL)
    assert protocol.next_event() is None and protocol.waiting
    protocol.accept()
    assert protocol.next_event() == MailFrom("a@example.org")


@pytest.mark.parametrize(("code", "closed"), [(554, False), (421, True)])
def test_a_client_that_is_refused_when_tls_has_begun(code, closed):
    def answer(protocol, event):
        protocol.secured()
        protocol.reject(code, "no certificate of yours is known")

    talk = Talk(answer, starttls=True)
    assert talk.say(EHLO + b"STARTTLS\r\n")[-1] == "220 2.0.0 go ahead"
    assert codes(talk.say(EHLO)) == [f"{code} {code // 100}.7.1"]
    assert talk.protocol.closed is closed


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
        (b"AUTH PLAIN\r\n\xff", ["334", "501 5.5.2"]),
        (b"AUTH LOGIN\r\na\0b", ["334", "501 5.5.2"]),
        (b"AUTH CRAM-MD5", ["504 5.5.4"]),
        (b"AUTH", ["501 5.5.4"]),
    ],
)
def test_auth(sent, says):
    talk = Talk(auth=True, secure=True)
    talk.say(EHLO)
    assert codes(talk.say(sent + b"\r\n")) == says
    accepted = says[-1] == "235 2.7.0"
    assert talk.events == [Authenticate("login", "secret")] * accepted
    assert talk.protocol.authenticated is accepted


def test_the_prompts_of_auth_login_are_what_clients_know():
    talk = Talk(auth=True, secure=True)
    talk.say(EHLO)
    assert talk.ask(b"AUTH LOGIN\r\n") == "334 " + b64("Username:").decode()
    assert talk.ask(b"=\r\n") == "334 " + b64("Password:").decode()
    talk.say(b"=\r\n")
    assert talk.events == [Authenticate("", "")]


def test_auth_that_is_refused_counts_as_an_error_and_may_be_tried_again():
    talk = Talk(lambda protocol, event: protocol.reject(535, "5.7.8 wrong"), auth=True, secure=True, max_errors=2)
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
