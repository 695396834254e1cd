"""A mail server that is lost at any point of what it says, whatever plugins do then; and that says it in any pieces."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

import pytest
from milter_tools import OFFER, split_packets
from smtp_tools import plugin, run
from test_mail_milter import asked
from waiting import until

import mqcore
from mqcore.mail import Mail
from mqcore.mail.milter._session import Session
from mqcore.milter.packets import packet, parameters

CLIENT = [
    packet(b"D", b"C" + parameters(b"v", b"Postfix 3.7.11")),
    packet(b"C", b"a.example\0" + b"4" + struct.pack("!H", 25) + b"192.0.2.7\0"),
    packet(b"H", b"me\0"),
]
MAIL = [
    packet(b"D", b"M" + parameters(b"{auth_authen}", b"bob")),
    packet(b"M", parameters(b"<a@example.org>")),
    packet(b"R", parameters(b"<b@example.org>")),
    packet(b"T"),
    packet(b"D", b"L" + parameters(b"i", b"QUEUE")),
    packet(b"L", parameters(b"Subject", b" hello")),
    packet(b"N"),
    packet(b"B", b"body\r\n"),
    packet(b"E"),
    packet(b"A"),
]
PACKETS = [OFFER, *CLIENT, *MAIL, *MAIL, packet(b"Q")]


class Wire:
    """What a session writes to."""

    def __init__(self) -> None:
        self.said = b""
        self.is_closed = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.said += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def connected(at: Any) -> tuple[Session, Wire]:
    session, wire = Session(at.server.host), Wire()
    session.connection_made(wire)  # type: ignore[arg-type]
    return session, wire


def fail(context: Any, message: Mail, *arguments: Any) -> None:
    raise ValueError("a bug")


def refuse(context: Any, message: Mail, *arguments: Any) -> None:
    message.reject(550, "5.7.1 no")


def discard(context: Any, message: Mail, *arguments: Any) -> None:
    message.discard()


def add(context: Any, message: Mail, *arguments: Any) -> None:
    message.headers.add("X-New", "1")


async def wait(context: Any, message: Mail, *arguments: Any) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("stage", ["connect", "mailfrom", "rcptto", "data", "message"])
@pytest.mark.parametrize("how", [None, fail, refuse, discard, add, wait])
@run
async def test_a_server_that_is_lost_after_any_packet(stage: str, how: Any) -> None:
    """None: the plugin holds, and gives back when it is too late."""
    held: list[Any] = []
    closed: list[Mail] = []

    def hold(context: Any, message: Mail, *arguments: Any) -> Any:
        held.append((context, message))
        return mqcore.HOLD

    one = plugin(**{stage: how or hold, "close": lambda context, message: closed.append(message)})
    async with asked(one) as (_mta, at):
        for count in range(len(PACKETS) + 1):
            session, _wire = connected(at)
            for each in PACKETS[:count]:
                session.data_received(each)
            session.connection_lost(None)
            session.connection_lost(None)
            while held:
                context, message = held.pop()
                with contextlib.suppress(mqcore.NotHeld):
                    context.continue_(message)
            assert session not in at.server.host.sessions
            assert len(closed) == (count > 2)
            closed.clear()
        for _ in range(5):  # until tasks that were cancelled have ended
            await asyncio.sleep(0)
        assert at.gateway.dispatcher.counts()["held"] == at.gateway.in_flight == 0


@pytest.mark.parametrize("size", [1, 5, 64, 100_000])
@run
async def test_what_is_said_does_not_depend_on_the_pieces(size: int) -> None:
    async with asked(plugin(message=add)) as (_mta, at):
        session, wire = connected(at)
        data = b"".join(PACKETS)
        for begin in range(0, len(data), size):
            session.data_received(data[begin : begin + size])
        assert wire.is_closed
        session.connection_lost(None)
        answer = [(b"i", b"\0\0\0\1X-New\0 1\0"), (b"c", b"")]
        assert split_packets(wire.said)[1:] == [*answer, *answer]
        assert at.counts.continued == 2


@run
async def test_a_plugin_that_gives_back_lets_the_next_mail_of_the_same_piece_go_on() -> None:
    held: list[Any] = []

    def hold(context: Any, message: Mail) -> Any:
        held.append((context, message))
        return mqcore.HOLD

    async with asked(plugin(message=hold)) as (_mta, at):
        session, wire = connected(at)
        without_aborts = [one for one in PACKETS if one not in (packet(b"A"), packet(b"Q"))]
        session.data_received(b"".join(without_aborts))
        for count in (1, 2):
            assert len(held) == 1
            context, message = held.pop()
            message.headers.add("X-New", str(count))
            context.continue_(message)
            await until(lambda wanted=1 + 2 * count: len(split_packets(wire.said)) >= wanted)
        assert [data for command, data in split_packets(wire.said) if command == b"i"] == [
            b"\0\0\0\1X-New\0 1\0",
            b"\0\0\0\1X-New\0 2\0",
        ]
        session.connection_lost(None)
