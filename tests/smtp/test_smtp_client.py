"""The client's side of SMTP and LMTP, without I/O: what it says, and what it makes of what a server says."""

from __future__ import annotations

import pytest

from mqcore.smtp.client import Blocks, ClientProtocol
from mqcore.smtp.content import make_content
from mqcore.smtp.replies import MAX_REPLY, ProtocolError, Reply, ReplyReader

CONTENT = make_content(b"Subject: hello\n\nhello\n")
HELLO = b"220 mx.example\r\n", b"250-mx.example\r\n250-PIPELINING\r\n250-SIZE 1000000\r\n250 8BITMIME\r\n"
PLAIN = b"220 mx.example\r\n", b"250 mx.example\r\n"


def opened(hello: tuple[bytes, ...] = HELLO, **options: bool) -> ClientProtocol:
    protocol = ClientProtocol("me.example", **options)
    assert protocol.receive(hello[0]) is None
    assert protocol.take_output() == (b"LHLO" if protocol.lmtp else b"EHLO") + b" me.example\r\n"
    assert protocol.receive(hello[1]).state == "ehlo"
    assert protocol.is_idle
    return protocol


def begun(*recipients: str, hello: tuple[bytes, ...] = HELLO, blocks: Blocks | None = None, **options: bool) -> ClientProtocol:
    """With a transaction for them."""
    protocol = opened(hello, **options)
    assert protocol.send("a@example.org", recipients or ("b@example.org",), CONTENT, blocks) is None
    return protocol


def told(protocol: ClientProtocol) -> list[tuple[str, int | None]]:
    return [(reply.state, reply.code) for reply in protocol.replies.values()]


# Replies


def read(*pieces: bytes) -> list[tuple[int, list[str]]]:
    reader = ReplyReader()
    replies = []
    for piece in pieces:
        reader.feed(piece)
        while (reply := reader.next()) is not None:
            replies.append(reply)
    return replies


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"250 ok\r\n", [(250, ["ok"])]),
        (b"250 ok\n", [(250, ["ok"])]),
        (b"250 ok\r\r\n", [(250, ["ok"])]),
        (b"250\r\n", [(250, [""])]),
        (b"250 \r\n", [(250, [""])]),
        (b"250-a\r\n250-b\r\n250 c\r\n", [(250, ["a", "b", "c"])]),
        (b"250-a\r\n550 b\r\n", [(550, ["a", "b"])]),
        (b"250-\r\n250\r\n", [(250, ["", ""])]),
        (b"354 a\r\n250 b\r\n", [(354, ["a"]), (250, ["b"])]),
        (b"250 a\0b\x07\x1b[31m\r\n", [(250, ["a?b??[31m"])]),
        (b"250 a\rb\tc\r\n", [(250, ["a?b c"])]),
        (b"250 \xc3\xa9 \xe9\r\n", [(250, ["\u00e9 \ufffd"])]),
    ],
)
def test_replies_in_any_pieces(data, expected):
    assert read(data) == expected
    assert read(*(data[at : at + 1] for at in range(len(data)))) == expected
    for at in range(len(data)):
        assert read(data[:at], data[at:]) == expected


@pytest.mark.parametrize(
    "data",
    [
        *(b"\r\n", b"hello\r\n", b"25 ok\r\n", b"2500 ok\r\n", b"199 ok\r\n", b"600 ok\r\n", b" 250 ok\r\n", b"250_ok\r\n"),
        *(b"\xd9\xa2\xd9\xa5\xd9\xa0 ok\r\n", b"\x00250 ok\r\n", b"250-a\r\nb\r\n", b"-250 ok\r\n", b"2 0 ok\r\n"),
    ],
)
def test_no_replies(data):
    with pytest.raises(ProtocolError, match="this is no reply of SMTP"):
        read(data)


@pytest.mark.parametrize("line", [b"250-x\r\n", b"x", b"250 x"])
def test_replies_without_an_end(line):
    with pytest.raises(ProtocolError, match="a reply has no end"):
        read(*[line * 17] * (MAX_REPLY // 16))


# The greeting


def test_greeting_and_ehlo():
    protocol = ClientProtocol("me.example")
    assert protocol.take_output() == b"" and not protocol.is_idle
    assert protocol.receive(b"220-mx.example\r\n220 well") is None
    assert protocol.receive(b"come\r\n") is None
    assert protocol.take_output() == b"EHLO me.example\r\n"
    end = protocol.receive(b"250-mx.example hi\r\n250-pipelining\r\n250-AUTH=LOGIN\r\n250-SIZE\r\n250 AUTH PLAIN LOGIN\r\n")
    assert end.is_positive
    assert protocol.extensions == {"PIPELINING": "", "AUTH": "LOGIN", "SIZE": ""}


@pytest.mark.parametrize("code", [b"421", b"450", b"554"])
def test_a_server_that_does_not_want_us(code):
    protocol = ClientProtocol("me.example")
    assert protocol.receive(code + b" no\r\n") == Reply("greeting", int(code), "no")
    assert protocol.take_output() == b""


def test_helo_to_who_does_not_know_ehlo():
    protocol = ClientProtocol("me.example")
    protocol.receive(b"220 hi\r\n")
    protocol.take_output()
    assert protocol.receive(b"500 what?\r\n") is None
    assert protocol.take_output() == b"HELO me.example\r\n"
    assert protocol.receive(b"250-mx\r\n250 STARTTLS\r\n") == Reply("helo", 250, "mx STARTTLS")
    assert protocol.extensions == {}


@pytest.mark.parametrize(("lmtp", "code"), [(False, 450), (False, 421), (True, 500)])
def test_no_helo(lmtp, code):
    protocol = ClientProtocol("me.example", lmtp=lmtp)
    protocol.receive(b"220 hi\r\n")
    protocol.take_output()
    assert protocol.receive(b"%d what?\r\n" % code) == Reply("ehlo", code, "what?")


@pytest.mark.parametrize("data", [b"220 hi\r\n250 ok\r\n", b"220 hi\r\n2"])
def test_replies_to_what_was_not_sent_yet(data):
    with pytest.raises(ProtocolError):
        ClientProtocol("me.example").receive(data)


def test_starttls_forgets_what_was_offered():
    protocol = opened((HELLO[0], b"250-mx\r\n250-STARTTLS\r\n250 SIZE\r\n"))
    protocol.start_tls()
    assert protocol.take_output() == b"STARTTLS\r\n"
    assert protocol.receive(b"220 go\r\n").code == 220
    protocol.secured()
    assert protocol.take_output() == b"EHLO me.example\r\n"
    assert protocol.receive(b"250 mx\r\n").is_positive
    assert protocol.extensions == {}


@pytest.mark.parametrize("more", [b"250 evil\r\n", b"x"])
def test_what_is_said_behind_starttls_in_the_clear(more):
    """Somebody on the way may have put it there."""
    protocol = opened()
    protocol.start_tls()
    protocol.take_output()
    with pytest.raises(ProtocolError):
        protocol.receive(b"220 go\r\n" + more)


# Passwords


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        (b"PLAIN LOGIN", [b"AUTH PLAIN AG1lAHBhc3M=\r\n"]),
        (b"LOGIN", [b"AUTH LOGIN\r\n", b"bWU=\r\n", b"cGFzcw==\r\n"]),
    ],
)
def test_login(offered, said):
    protocol = opened((HELLO[0], b"250-mx\r\n250 AUTH %b\r\n" % offered), secure=True)
    protocol.login("me", "pass")
    for number, line in enumerate(said):
        assert protocol.take_output() == line
        end = protocol.receive(b"235 ok\r\n" if number == len(said) - 1 else b"334 eA==\r\n")
    assert end == Reply("auth", 235, "ok")


def test_a_login_that_is_asked_for_more():
    protocol = opened((HELLO[0], b"250-mx\r\n250 AUTH PLAIN\r\n"), secure=True)
    protocol.login("me", "pass")
    protocol.take_output()
    assert protocol.receive(b"334 more\r\n") is None
    assert protocol.take_output() == b"*\r\n"
    assert protocol.receive(b"501 no\r\n") == Reply("auth", 501, "no")


def test_no_password_in_the_clear():
    protocol = opened((HELLO[0], b"250-mx\r\n250 AUTH PLAIN\r\n"))
    with pytest.raises(ValueError, match="no password is sent in the clear"):
        protocol.login("me", "pass")


# A transaction


def test_a_group_of_commands():
    protocol = begun("b@example.org", "c@example.org")
    size = len(CONTENT)
    assert protocol.take_output() == (
        b"MAIL FROM:<a@example.org> SIZE=%d\r\nRCPT TO:<b@example.org>\r\nRCPT TO:<c@example.org>\r\nDATA\r\n" % size
    )
    assert protocol.receive(b"250 ok\r\n250 ok\r\n") is None
    assert protocol.receive(b"550 no\r\n") is None
    assert not protocol.in_doubt
    assert protocol.receive(b"354 go\r\n") is None
    assert protocol.in_doubt and protocol.take_output() == CONTENT
    assert protocol.receive(b"250 queued\r\n") == Reply("message", 250, "queued")
    assert told(protocol) == [("rcptto", 550), ("message", 250)] and not protocol.in_doubt
    assert protocol.is_idle


@pytest.mark.parametrize("options", [{"hello": PLAIN}, {"pipelining": False}])
def test_one_command_after_the_other(options):
    protocol = begun("b@example.org", "c@example.org", **options)
    for words in ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "RCPT TO:<c@example.org>"):
        assert protocol.take_output().decode().partition(" SIZE")[0].strip() == words
        assert protocol.receive(b"250 ok\r\n") is None
    assert protocol.take_output() == b"DATA\r\n"
    assert protocol.receive(b"354 go\r\n") is None
    assert protocol.take_output() == CONTENT
    protocol.receive(b"250 queued\r\n")
    assert told(protocol) == [("message", 250)] * 2


def test_whom_a_reply_blocks():
    """DATA is not sent, where the message would go to the others."""
    protocol = begun("b@example.org", "c@example.org", blocks=lambda reply: reply.is_temporary)
    assert b"DATA" not in protocol.take_output()
    assert protocol.receive(b"250 ok\r\n250 ok\r\n450 later\r\n").code == 450
    assert told(protocol) == [("rcptto", 250), ("rcptto", 450)]
    protocol.reset()
    assert protocol.take_output() == b"RSET\r\n"


def test_whom_no_reply_blocks():
    protocol = begun("b@example.org", "c@example.org", blocks=lambda reply: reply.is_temporary)
    protocol.take_output()
    assert protocol.receive(b"250 ok\r\n250 ok\r\n550 no\r\n") is None
    assert protocol.take_output() == b"DATA\r\n"


def test_nobody_is_taken_and_the_server_waits_for_a_message():
    protocol = begun("b@example.org", "c@example.org")
    protocol.take_output()
    assert protocol.receive(b"250 ok\r\n550 no\r\n450 later\r\n354 go\r\n") is None
    assert protocol.take_output() == b".\r\n" and not protocol.in_doubt
    protocol.receive(b"250 nobody has it\r\n")
    assert told(protocol) == [("rcptto", 550), ("rcptto", 450)]


def test_a_sender_who_is_refused():
    protocol = begun("b@example.org")
    protocol.take_output()
    assert protocol.receive(b"550 no\r\n503 what?\r\n") is None
    assert protocol.receive(b"503 what?\r\n") is not None
    assert told(protocol) == [("mailfrom", 550)]


def test_data_that_is_refused():
    protocol = begun("b@example.org", "c@example.org")
    protocol.take_output()
    assert protocol.receive(b"250 ok\r\n250 ok\r\n550 no\r\n451 later\r\n") is not None
    assert told(protocol) == [("rcptto", 550), ("data", 451)]


@pytest.mark.parametrize(
    "said",
    [
        b"550 left from before\r\n250 ok\r\n250 ok\r\n250 ok\r\n",
        b"250 ok\r\n250 ok\r\n250 ok\r\n",
        b"354 go\r\n",
        b"250 ok\r\n354 go\r\n",
        b"250 ok\r\n250 ok\r\n354 go\r\n250 you did not even send it\r\n",
        b"250 ok\r\n250 ok\r\n354 go\r\n2",
    ],
)
def test_replies_out_of_step(said):
    """No verdict comes of them."""
    protocol = begun("b@example.org")
    protocol.take_output()
    with pytest.raises(ProtocolError):
        protocol.receive(said)
    assert protocol.closed and not protocol.is_idle
    assert not any(reply.is_delivered or reply.is_final for reply in protocol.replies.values())


@pytest.mark.parametrize("more", [b"250 again\r\n", b"what?\r\n", b"2"])
def test_a_verdict_holds_whatever_follows(more):
    protocol = begun("b@example.org")
    protocol.take_output()
    protocol.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    protocol.take_output()
    assert protocol.receive(b"250 queued\r\n" + more).is_delivered
    assert told(protocol) == [("message", 250)] and not protocol.in_doubt
    assert protocol.closed


@pytest.mark.parametrize("unasked", [b"421 too long\r\n", b"250 ok\r\n", b"2", b"\r\n"])
def test_what_comes_unasked(unasked):
    protocol = opened()
    with pytest.raises(ProtocolError):
        protocol.receive(unasked)
    assert not protocol.is_idle


def test_a_server_that_has_not_got_the_message():
    protocol = begun("b@example.org")
    protocol.take_output()
    protocol.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    protocol.take_output()
    with pytest.raises(ProtocolError, match="had not all of the message"):
        protocol.receive(b"250 queued\r\n", flushed=False)
    assert protocol.in_doubt and protocol.replies == {}


def test_a_refusal_before_all_of_the_message():
    protocol = begun("b@example.org")
    protocol.take_output()
    protocol.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    protocol.take_output()
    protocol.receive(b"552 too big\r\n", flushed=False)
    assert told(protocol) == [("message", 552)] and not protocol.in_doubt
    assert protocol.closed


@pytest.mark.parametrize("before", range(4))
def test_421_in_a_group(before):
    protocol = begun("b@example.org", "c@example.org")
    protocol.take_output()
    replies = [b"250 ok\r\n", b"550 no\r\n", b"250 ok\r\n"][:before]
    assert protocol.receive(b"".join([*replies, b"421 bye\r\n"])).code == 421
    assert protocol.closed and not protocol.in_doubt
    assert told(protocol) == ([("rcptto", 550)] if before > 1 else [])


def test_a_message_that_is_too_big_is_not_sent():
    protocol = opened((HELLO[0], b"250-mx\r\n250 SIZE 10\r\n"))
    assert protocol.send("", ["b@example.org"], CONTENT).code == 552
    assert protocol.take_output() == b"" and told(protocol) == [("mailfrom", 552)]
    assert protocol.is_idle


def test_what_is_announced():
    protocol = opened((HELLO[0], b"250-mx\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"))
    assert protocol.send("\u00e9@example.org", ["b@example.org"], "\u00e9\r\n.\r\n".encode()) is None
    assert protocol.take_output() == "MAIL FROM:<\u00e9@example.org> BODY=8BITMIME SMTPUTF8\r\n".encode()
    protocol = opened()
    assert protocol.send("", ["\u00e9@example.org"], CONTENT).code == 553


@pytest.mark.parametrize("address", ["a> SIZE=1", "a\r\nRSET", "", "a b", "\udcff@example.org"])
def test_addresses_that_are_none(address):
    protocol = opened()
    with pytest.raises(ValueError, match="these cannot be sent as addresses"):
        protocol.send("", [address], CONTENT)
    assert protocol.is_idle


def test_one_thing_at_a_time():
    protocol = begun()
    with pytest.raises(RuntimeError):
        protocol.send("", ["b@example.org"], CONTENT)


def test_one_transaction_after_the_other():
    protocol = opened()
    for _ in range(3):
        protocol.send("", ["b@example.org"], CONTENT)
        protocol.take_output()
        protocol.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        protocol.take_output()
        assert protocol.receive(b"250 queued\r\n").is_delivered
    protocol.quit()
    assert protocol.take_output() == b"QUIT\r\n"
    assert protocol.receive(b"221 bye\r\n") == Reply("quit", 221, "bye")


# LMTP


def test_a_reply_for_each_recipient_who_was_accepted():
    protocol = begun("b@example.org", "no@example.org", "c@example.org", "d@example.org", lmtp=True)
    protocol.take_output()
    protocol.receive(b"250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert protocol.take_output() == CONTENT
    assert protocol.receive(b"250 stored\r\n") is None
    assert protocol.in_doubt
    assert protocol.receive(b"452 4.2.2 full\r\n") is None
    assert protocol.receive(b"250 stored\r\n").is_delivered
    assert protocol.replies == {
        "no@example.org": Reply("rcptto", 550, "no"),
        "b@example.org": Reply("message", 250, "stored"),
        "c@example.org": Reply("message", 452, "4.2.2 full"),
        "d@example.org": Reply("message", 250, "stored"),
    }
    assert protocol.is_idle and not protocol.in_doubt


def test_replies_that_end_in_the_middle():
    protocol = begun("b@example.org", "c@example.org", lmtp=True)
    protocol.take_output()
    protocol.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    protocol.take_output()
    with pytest.raises(ProtocolError):
        protocol.receive(b"250 stored\r\nwhat?\r\n")
    assert protocol.in_doubt and list(protocol.replies) == ["b@example.org"]


def test_421_for_one_of_several():
    """The others may have theirs; but the connection is over then."""
    protocol = begun("b@example.org", "c@example.org", lmtp=True)
    protocol.take_output()
    protocol.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    protocol.take_output()
    assert protocol.receive(b"421 bye\r\n") is None
    assert protocol.receive(b"250 stored\r\n").is_delivered
    assert told(protocol) == [("message", 421), ("message", 250)]
    assert protocol.closed


def test_a_message_for_nobody():
    protocol = begun("b@example.org", lmtp=True)
    protocol.take_output()
    with pytest.raises(ProtocolError, match="for nobody"):
        protocol.receive(b"250 ok\r\n550 no\r\n354 go\r\n")
