"""XCLIENT and XFORWARD, taken and given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from smtp_tools import EHLO, MAIL, RCPT, Talk, codes

from mqcore.smtp import xclient
from mqcore.smtp.events import MailFrom, XClient
from mqcore.smtp.syntax import ReplyError


def talk(**may: bool) -> Talk:
    it = Talk()
    for name, value in may.items():
        setattr(it.protocol, f"may_{name}", value)
    return it


@pytest.mark.parametrize("may", [{}, {"xclient": True}, {"xforward": True}, {"xclient": True, "xforward": True}])
def test_announced_to_those_who_may_say_it(may):
    it = talk(**may)
    words = {line[4:].split()[0] for line in it.say(EHLO)}
    assert {"XCLIENT", "XFORWARD"} & words == {name.upper() for name in may}
    assert codes(it.say(b"XCLIENT ADDR=192.0.2.7\r\n")) == ["220" if "xclient" in may else "550 5.7.0"]
    assert codes(it.say(b"XFORWARD ADDR=192.0.2.7\r\n")) == ["250 2.0.0" if "xforward" in may else "550 5.7.0"]


def test_xclient_begins_anew():
    it = talk(xclient=True)
    it.say(EHLO + MAIL)
    assert codes(it.say(b"XCLIENT ADDR=192.0.2.7\r\nRSET\r\n")) == ["503 5.5.1", "250 2.0.0"]
    assert it.ask(b"XCLIENT NAME=a+2Bb.example ADDR=IPV6:2001:DB8::7 HELO=[UNAVAILABLE]\r\n") == "220 mx.example ESMTP"
    assert it.events[-1] == XClient({"name": "a+b.example", "addr": "2001:db8::7", "helo": None})
    assert it.protocol.helo is None and codes(it.say(MAIL)) == ["503 5.5.1"]
    assert not it.protocol.authenticated
    assert codes(it.say(b"XCLIENT LOGIN=somebody\r\n")) == ["220"]  # and again
    assert it.protocol.authenticated
    assert codes(it.say(b"XCLIENT LOGIN=[UNAVAILABLE]\r\n")) == ["220"]
    assert not it.protocol.authenticated


def test_xforward_is_for_one_transaction():
    it = talk(xforward=True)
    it.say(EHLO)
    assert codes(it.say(b"XFORWARD ADDR=192.0.2.7 NAME=[UNAVAILABLE]\r\nXFORWARD HELO=x\r\n")) == ["250 2.0.0"] * 2
    it.say(MAIL)
    assert it.protocol.forwarded == {"addr": "192.0.2.7", "name": None, "helo": "x"}
    assert codes(it.say(b"XFORWARD HELO=y\r\n")) == ["503 5.5.1"]
    it.say(RCPT + b"DATA\r\n.\r\n")
    assert it.protocol.forwarded is None and it.events[0] == MailFrom("a@example.org")


@pytest.mark.parametrize(
    "argument",
    [
        *("", "ADDR", "ADDR=", "=x", "ADDR=x", "ADDR=192.0.2.7 ADDR=192.0.2.8", "ADDR=256.1.1.1", "ADDR=IPV6:192.0.2.7"),
        *("PORT=x", "PORT=123456", "NAME=a=b", "NAME=+4", "NAME=+zz", "UNKNOWN=1", "NAME=é", "NAME=" + "x" * 256),
        "NAME=a  HELO=b",
    ],
)
def test_what_is_no_attribute(argument):
    with pytest.raises(ReplyError, match="^501 5.5.4 "):
        xclient.parse(argument, xclient.XFORWARD)
    it = talk(xclient=True, xforward=True)
    assert codes(it.say(f"XCLIENT {argument}\r\nXFORWARD {argument}\r\n".encode())) == ["501 5.5.4"] * 2
    assert it.events == [] and it.protocol.forwarded is None


def test_what_could_forge_a_line_is_a_question_mark():
    assert xclient.parse("HELO=a+0D+0Ab+00+FF", xclient.XFORWARD) == {"helo": "a??b??"}


@given(st.dictionaries(st.sampled_from(["name", "helo", "ident", "proto"]), st.text(max_size=100)))
def test_what_is_written_is_what_is_read(values):
    read: dict[str, str | None] = {}
    for command in xclient.write(values, xclient.XFORWARD):
        assert command.startswith(b"XFORWARD ") and command.endswith(b"\r\n") and len(command) <= 514
        assert command[:-2].isascii() and b"\r" not in command[:-2] and b"\n" not in command[:-2]
        read |= xclient.parse(command[9:-2].decode(), xclient.XFORWARD)
    assert read.keys() == values.keys()
    for name, value in values.items():
        if value.isascii() and value.isprintable() and value and len(value) < 80:
            assert read[name] == value or value.upper() in ("[UNAVAILABLE]", "[TEMPUNAVAIL]")


def test_addresses_are_written_as_postfix_has_them():
    assert xclient.write({"addr": "2001:db8::7", "name": None}, ["NAME", "ADDR", "X"]) == [
        b"XFORWARD NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::7\r\n"
    ]
    assert xclient.write({"addr": "192.0.2.7"}, ["NAME"]) == []
