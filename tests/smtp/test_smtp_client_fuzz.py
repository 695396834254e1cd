"""Whatever bytes a server sends, in whatever pieces: no mail counts as delivered that the server did not say 250 to, when it
had all of it; and all that is said to it is SMTP.

The stored inputs in `corpus_client/` are what servers say that are broken, hostile, or no servers of mail at all.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mqcore.smtp.client import ClientProtocol
from mqcore.smtp.content import make_content
from mqcore.smtp.replies import ProtocolError, Reply

CORPUS = sorted((Path(__file__).parent / "corpus_client").glob("*.replies"))
CONTENT = make_content(b"Subject: hello\n\n.\nhello\n")
COMMANDS = re.compile(
    rb"(?:(?:EHLO|LHLO|HELO) me\.example|MAIL FROM:<a@b>(?: SIZE=\d+)?|RCPT TO:<\d@d>|DATA|RSET|QUIT|\.)\r\n"
)
MODES = [{}, {"lmtp": True}, {"pipelining": False}, {"lmtp": True, "pipelining": False}]
IDS = ["SMTP", "LMTP", "one by one", "LMTP, one by one"]


class Talk:
    """As a program talks to a server: greeting, two transactions, QUIT."""

    def __init__(self, recipients: int, **options: bool) -> None:
        self.protocol = ClientProtocol("me.example", **options)
        self.recipients = [f"{number}@d" for number in range(recipients)]
        self.results: list[dict[str, Reply]] = []
        self.out: list[bytes] = []
        self.doubts = 0
        self.steps = iter([self._send, self._send, self.protocol.quit])

    def _send(self) -> None:
        if self.protocol.send("a@b", self.recipients, CONTENT) is not None:  # too big for that server
            self.results.append(self.protocol.replies)

    def say(self, data: bytes) -> bool:
        """Whether the server is talked to any longer."""
        protocol = self.protocol
        try:
            end = protocol.receive(data)
        except ProtocolError:
            end = None
        if end is not None and protocol.state in ("mailfrom", "rcptto", "data", "message", "nobody"):
            assert protocol.closed or set(protocol.replies) == set(self.recipients)
            assert not protocol.in_doubt
            self.results.append(protocol.replies)
        elif protocol.closed and protocol.state != "quit":  # else there is no transaction, and the last one has been counted
            self.doubts += protocol.in_doubt
            self.results.append(protocol.replies)
        if protocol.closed:
            assert not protocol.is_idle
            return False
        if end is not None:
            step = next(self.steps, None)
            if step is None:
                return False
            step()
            if protocol.is_idle:
                return False
        self.out.append(protocol.take_output())
        return True


def check(pieces: list[bytes], recipients: int, mode: dict[str, bool]) -> Talk:
    talk = Talk(recipients, **mode)
    for piece in pieces:
        if not talk.say(piece):
            break
    said = [out for out in talk.out if out]
    for out in said:
        assert out == CONTENT or COMMANDS.sub(b"", out) == b"", out
    delivered = [reply for replies in talk.results for reply in replies.values() if reply.is_delivered]
    assert all(reply.code and 200 <= reply.code <= 299 for reply in delivered)
    whole = said.count(CONTENT)
    assert len(delivered) <= whole * recipients
    assert sum(any(reply.state == "message" for reply in replies.values()) for replies in talk.results) <= whole
    return talk


@pytest.mark.parametrize("mode", MODES, ids=IDS)
@pytest.mark.parametrize("recipients", [1, 3])
@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_the_stored_inputs(file, recipients, mode):
    data = file.read_bytes()
    check([data], recipients, mode)
    check(data.splitlines(keepends=True), recipients, mode)
    size = 1 + len(data) // 1000
    check([data[at : at + size] for at in range(0, len(data), size)], recipients, mode)


def test_there_are_stored_inputs():
    assert len(CORPUS) > 20


LINES = st.sampled_from(
    [
        *(b"220 hi", b"250 ok", b"250-ok", b"250-PIPELINING", b"250-SIZE 9", b"250 PIPELINING", b"354 go", b"421 bye", b"334 "),
        *(b"450 later", b"452 4.5.3 too many", b"550 no", b"550-no", b"250", b"25", b"999 x", b"\0", b"\xff", b"", b"x" * 70),
    ]
)
ENDS = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b""])
SOUND = st.lists(
    st.sampled_from([b"250 ok\r\n"] * 6 + [b"354 go\r\n"] * 3 + [b"550 no\r\n", b"450 later\r\n", b"421 bye\r\n"]), max_size=30
).map(lambda replies: [b"220 hi\r\n", b"250-mx\r\n250 PIPELINING\r\n", *replies])


@settings(max_examples=examples(400), deadline=None)
@given(
    st.lists(st.one_of(st.tuples(LINES, ENDS).map(b"".join), st.binary(max_size=20)), max_size=40).map(b"".join),
    st.lists(st.integers(0, 400), max_size=6),
    st.integers(1, 3),
    st.sampled_from(MODES),
)
def test_made_up_inputs(data, cuts, recipients, mode):
    places = [0, *sorted(cuts), len(data)]
    check([data[start:end] for start, end in itertools.pairwise(places)], recipients, mode)


@settings(max_examples=examples(400), deadline=None)
@given(SOUND, st.integers(1, 3), st.sampled_from(MODES))
def test_whole_replies_in_any_order(replies, recipients, mode):
    """Reply by reply and byte by byte it is the same."""
    whole = check(replies, recipients, mode)
    data = b"".join(replies)
    split = check([data[at : at + 1] for at in range(len(data))], recipients, mode)
    assert (whole.results, whole.doubts, b"".join(whole.out)) == (split.results, split.doubts, b"".join(split.out))
