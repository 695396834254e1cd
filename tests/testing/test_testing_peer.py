"""A scripted server that plugins ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import mqcore
from mqcore.testing import Clock, Mq, PluginFactory, make_mail
from mqcore.testing.peer import Peer

HOOK = "mq_smtp_in_message"


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Clock() as clock, Peer(clock) as made:
        yield made


def ask(peer: Peer, timeout: float, question: bytes = b"PING\r\n") -> Any:
    async def hook(context: Any, mail: Any) -> Any:
        reader, writer = await asyncio.open_connection(peer.host, peer.port)
        try:
            writer.write(question)
            async with asyncio.timeout(timeout):
                answer = await reader.readline()
        except TimeoutError:
            mail.reject(451, "4.4.1 too late")
            return
        finally:
            writer.close()
        mail.headers.add("X-Answer", answer.decode().strip() or "none")

    return SimpleNamespace(mq_smtp_in_message=hook)


def run(peer: Peer, plugin: Any) -> Any:
    factory = PluginFactory()
    try:
        with Mq(peer._clock, factory(obj=plugin), hold_timeout=1000) as mq:
            return mq.run(HOOK, make_mail())
    finally:
        factory.close()


def test_it_answers_late_but_in_time(peer: Peer) -> None:
    peer.expect(b"PING\r\n").delay(5).send(b"PONG\r\n")
    assert run(peer, ask(peer, 10)).changes == ("+X-Answer: PONG",)
    assert (peer._clock.now, peer.clients, peer.received) == (5, 1, [b"PING\r\n"])
    assert run(peer, ask(peer, 3)).rejection == (451, "4.4.1 too late")
    assert peer._clock.now == 8


def test_it_hangs_up(peer: Peer) -> None:
    peer.expect(b"PING\r\n").close_connection()
    assert run(peer, ask(peer, 10)).changes == ("+X-Answer: none",)
    assert peer._clock.now == 0


def test_what_was_not_expected_is_told(peer: Peer) -> None:
    peer.expect(b"PING\r\n")
    result = run(peer, ask(peer, 10, b"QUIT\r\n"))
    assert result.outcome is mqcore.CONTINUE
    with pytest.raises(AssertionError, match=r"expected b'PING\\r\\n', and b'QUIT\\r\\n' came$"):
        peer.close()


def test_all_that_came_is_told(peer: Peer) -> None:
    peer.expect(b"HI\r\n").send(b"HI\r\n")
    run(peer, ask(peer, 10, b"CHECK 1\r\nCHECK 2\r\n"))
    with pytest.raises(AssertionError, match=r"and b'CHECK 1\\r\\nCHECK 2\\r\\n' came"):
        peer.close()


def test_pieces_and_what_follows(peer: Peer) -> None:
    peer.expect(b"PI").expect(b"NG\r\n").send(b"PONG\r\n")
    assert run(peer, ask(peer, 10)).changes == ("+X-Answer: PONG",)
    assert peer.received == [b"PI", b"NG\r\n"]


def test_less_than_expected_is_told(peer: Peer) -> None:
    peer.expect(b"PING 1\r\n").send(b"PONG\r\n")
    run(peer, ask(peer, 10, b"PING"))
    with pytest.raises(AssertionError, match="and b'PING' came, and then the end"):
        peer.close()


@pytest.mark.parametrize("is_allowed", [False, True])
@pytest.mark.parametrize(
    ("question", "then", "words"),
    [
        (None, b"QUIT", "nobody connected"),
        (b"PING\r\n", b"QUIT", "expected b'QUIT', which never came"),
    ],
)
def test_who_is_not_asked_tells_it(
    peer: Peer, question: bytes | None, then: bytes, words: str, is_allowed: bool
) -> None:
    peer.must_be_asked = not is_allowed
    peer.expect(b"PING\r\n").delay(3600).expect(then)
    if question is None:
        assert run(peer, SimpleNamespace(mq_smtp_in_message=lambda context, mail: None)).outcome is mqcore.CONTINUE
    else:
        assert run(peer, ask(peer, 3)).rejection == (451, "4.4.1 too late")
    if is_allowed:
        return
    with pytest.raises(AssertionError, match=words):
        peer.close()
    peer.close()


def test_an_answer_that_comes_too_late_is_no_mistake(peer: Peer) -> None:
    peer.expect(b"PING\r\n").delay(5).send(b"PONG\r\n")
    assert run(peer, ask(peer, 3)).rejection == (451, "4.4.1 too late")
