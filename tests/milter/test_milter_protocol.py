"""The milter protocol: bytes in, events and packets out."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from milter_tools import OFFER, split_packets

from mqcore.milter.events import Abort, Connect, Event, Goodbye, Helo, MailFrom, Message, RcptTo, Wanted
from mqcore.milter.packets import LARGEST, MilterError, packet, parameters
from mqcore.milter.protocol import Changes, MilterProtocol, reply

POSTFIX = packet(b"D", b"C" + parameters(b"j", b"mx.test", b"v", b"Postfix 3.7.11"))
CONNECT = packet(b"C", b"a.example\0" + b"4" + struct.pack("!H", 25) + b"192.0.2.7\0")
NOTHING = Wanted(connect=False, secure=False, sender=False, recipient=False, content=False)


def negotiated(**options: int) -> MilterProtocol:
    protocol = MilterProtocol(Wanted(), **options)
    protocol.receive(OFFER)
    assert protocol.next_event() is None
    protocol.take_output()
    return protocol


def events(protocol: MilterProtocol, *data: bytes) -> Iterator[Event]:
    """All of them, each answered with yes."""
    protocol.receive(b"".join(data))
    while (event := protocol.next_event()) is not None:
        yield event
        if protocol.due:
            protocol.proceed()


TRANSACTION = [
    packet(b"D", b"M" + parameters(b"i", b"QUEUE", b"{auth_authen}", b"bob")),
    packet(b"M", parameters(b"<a@example.org>", b"SIZE=10")),
    packet(b"D", b"R"),
    packet(b"R", parameters(b"<b@example.org>", b"NOTIFY=NEVER")),
    packet(b"R", parameters(b"c@example.org")),
    packet(b"T"),
    packet(b"L", parameters(b"Subject", b" hello\n\tworld")),
    packet(b"L", parameters(b"X-Empty", b"")),
    packet(b"N"),
    packet(b"B", b"body\r\n"),
    packet(b"B", b"more\r\n"),
    packet(b"E"),
]
SEEN = [
    MailFrom("a@example.org", ["SIZE=10"]),
    RcptTo("b@example.org", b"<b@example.org>", ["NOTIFY=NEVER"]),
    RcptTo("c@example.org", b"c@example.org", []),
    Message(
        [(b"Subject", b" hello\n\tworld"), (b"X-Empty", b"")],
        b"body\r\nmore\r\n",
        b"Subject: hello\r\n\tworld\r\nX-Empty:\r\n\r\nbody\r\nmore\r\n",
    ),
]


def test_a_transaction_as_events() -> None:
    protocol = negotiated()
    assert list(events(protocol, POSTFIX, CONNECT, packet(b"H", b"me\0"), *TRANSACTION)) == [
        Connect("192.0.2.7", 25, "a.example"),
        Helo("me", False),
        *SEEN,
    ]
    assert protocol.macros["i"] == "QUEUE"
    assert protocol.macros["auth_authen"] == "bob"
    assert [command for command, _ in split_packets(protocol.take_output())] == [b"c"] * 6


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_bytes_may_come_in_any_pieces(size: int) -> None:
    protocol = negotiated()
    data = b"".join([POSTFIX, CONNECT, *TRANSACTION])
    seen = [event for at in range(0, len(data), size) for event in events(protocol, data[at : at + size])]
    assert seen[1:] == SEEN


def test_what_nobody_wants_is_not_asked_for_and_not_answered() -> None:
    protocol = MilterProtocol(NOTHING)
    protocol.receive(OFFER)
    assert protocol.next_event() is None
    ((command, data),) = split_packets(protocol.take_output())
    version, actions, steps = struct.unpack("!III", data)
    assert (command, version, actions) == (b"O", 6, 0x1FF)
    assert steps & 0xF000 == 0xF000  # no reply to connect, helo, sender, recipient
    assert steps & 0x270 == 0x270  # no body, no fields, no end of them, no DATA
    assert steps & 0xC00 == 0  # never SKIP, and no recipients that were refused
    list(events(protocol, POSTFIX, CONNECT, packet(b"H", b"me\0"), *TRANSACTION[:5]))
    assert protocol.take_output() == b""


def test_all_is_asked_for_where_it_is_wanted() -> None:
    protocol = MilterProtocol(Wanted())
    protocol.receive(OFFER)
    assert protocol.next_event() is None
    steps = struct.unpack("!III", split_packets(protocol.take_output())[0][1])[2]
    assert steps == 0x1F0180  # fields byte for byte, no unknown commands, and no reply to what has no verdict


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (packet(b"O", struct.pack("!III", 2, 0x1FF, 0x1FFFFF)), "version 2 of the milter protocol, and 6"),
        (packet(b"O", struct.pack("!III", 6, 0x1FF, 0)), "does not offer all"),
        (packet(b"O", b"short"), "12 octets"),
        (CONNECT, "before the versions"),
        (b"GET / HTTP/1.1\r\n\r\n", "a packet of"),
        (struct.pack("!I", 0), "a packet of 0 octets"),
        (struct.pack("!I", LARGEST + 1), "1 to 1048576 can be"),
        (OFFER + OFFER, "once"),
        (OFFER + packet(b"?"), "unknown"),
        (OFFER + packet(b"C", b"a\0?"), "no sense"),
        (OFFER + packet(b"C", b""), "no sense"),
        (OFFER + packet(b"R", b"<a>\0"), "outside of a transaction"),
        (OFFER + packet(b"E"), "outside of a transaction"),
        (OFFER + packet(b"B", b"x"), "outside of a transaction"),
    ],
)
def test_what_is_no_milter_protocol_is_told(data: bytes, why: str) -> None:
    protocol = MilterProtocol(Wanted())
    with pytest.raises(MilterError, match=why):
        list(events(protocol, data))


def test_clients_without_an_address() -> None:
    protocol = negotiated()
    assert list(events(protocol, packet(b"C", b"localhost\0L\0\0/run/x\0"))) == [Connect("", 0, "localhost")]
    assert list(events(protocol, packet(b"C", b"unknown\0U"))) == [Connect("", 0, "")]
    assert list(events(protocol, packet(b"C", b"[::1]\x006\x00\x19IPv6:::1\0"))) == [Connect("::1", 25, "")]


def test_tls_is_told_once_and_again_for_another_client() -> None:
    protocol = negotiated()
    tls = packet(b"D", b"H" + parameters(b"{tls_version}", b"TLSv1.3"))
    none = packet(b"D", b"H")
    hello = packet(b"H", b"me\0")
    assert [one.tls for one in events(protocol, none, hello, tls, hello, tls, hello) if isinstance(one, Helo)] == [
        False,
        True,
        False,
    ]
    again = list(events(protocol, packet(b"K"), CONNECT, tls, hello))
    assert again == [Goodbye(True), Connect("192.0.2.7", 25, "a.example"), Helo("me", True)]


def test_macros_of_a_message_are_not_those_of_the_next() -> None:
    """Postfix sends an abort behind each message, Sendmail none."""
    for between in (b"", packet(b"A")):
        protocol = negotiated()
        list(events(protocol, POSTFIX, CONNECT, *TRANSACTION, between))
        list(events(protocol, packet(b"M", parameters(b"<>"))))
        assert "auth_authen" not in protocol.macros
        assert "i" not in protocol.macros
        assert protocol.macros["j"] == "mx.test"


def test_odd_and_empty_lists_of_macros() -> None:
    protocol = negotiated()
    list(events(protocol, packet(b"D", b"U"), packet(b"D", b""), packet(b"D", b"C" + b"a\0b\0c"), packet(b"D", b"H\0")))
    assert protocol.macros["a"] == "b"


def test_an_abort_and_the_end() -> None:
    protocol = negotiated()
    assert list(events(protocol, CONNECT, *TRANSACTION[:4], packet(b"A")))[-1] == Abort()
    assert not protocol.in_transaction
    assert list(events(protocol, packet(b"Q"), packet(b"?"))) == [Goodbye(False)]
    assert protocol.is_ended


def test_a_big_message_is_refused_and_takes_no_memory() -> None:
    protocol = negotiated(max_message=1000)
    chunk = packet(b"B", b"x" * 400)
    assert len(list(events(protocol, CONNECT, *TRANSACTION[:5], chunk, chunk, chunk, chunk))) == 4
    assert not protocol._body
    protocol.take_output()
    assert list(events(protocol, packet(b"E"))) == []
    assert split_packets(protocol.take_output()) == [(b"y", b"552 5.3.4 this message is bigger than this filter takes\0")]
    assert next(events(protocol, *TRANSACTION[:4])) == SEEN[0]


@pytest.mark.parametrize(
    ("code", "text", "said"),
    [
        (550, "no such user", b"550 5.7.1 no such user\0"),
        (550, "4.1.1 no such user", b"550 5.1.1 no such user\0"),
        (451, "4.3.0 later", b"451 4.3.0 later\0"),
        (550, "5.1.1", b"550 5.1.1\0"),
        (550, "5.1.1000 odd", b"550 5.7.1 5.1.1000 odd\0"),
        (450, "100% full", b"450 4.7.1 100%% full\0"),
        (550, "5.7.1 a\r\n250 b\0c", b"550 5.7.1 a??250 b?c\0"),
        (550, "\udc80 \ud800", b"550 5.7.1 ? ?\0"),
    ],
)
def test_refusals_cannot_be_misread(code: int, text: str, said: bytes) -> None:
    assert split_packets(reply(code, text)) == [(b"y", said)]


def last_message(protocol: MilterProtocol) -> Message:
    protocol.receive(POSTFIX + CONNECT + b"".join(TRANSACTION))
    while not isinstance(event := protocol.next_event(), Message):
        protocol.proceed()
    protocol.take_output()
    return event


def test_changes_are_said_with_the_body_in_one_go() -> None:
    protocol = negotiated()
    message = last_message(protocol)
    mime = b"Subject: hello\r\n\tworld\r\nX-Empty:\r\nX-New: 1\r\n\r\n" + b"y" * 70_000
    encoded = protocol.encode(
        message,
        Changes(sender="", removed=[b"<b@example.org>"], added=["d@example.org"], mime=mime, quarantine="odd"),
    )
    protocol.finish(encoded)
    assert split_packets(protocol.take_output()) == [
        (b"q", b"odd\0"),
        (b"e", b"<>\0"),
        (b"-", b"<b@example.org>\0"),
        (b"+", b"<d@example.org>\0"),
        (b"i", b"\0\0\0\3X-New\0 1\0"),
        (b"b", b"y" * 65_535),
        (b"b", b"y" * 4_465),
        (b"c", b""),
    ]


def test_a_body_can_become_empty() -> None:
    protocol = negotiated()
    message = last_message(protocol)
    encoded = protocol.encode(message, Changes(mime=b"Subject: hello\r\n\tworld\r\nX-Empty:\r\n\r\n"))
    assert split_packets(encoded) == [(b"b", b"")]


def test_a_header_that_is_none_is_told_and_the_answer_stays_due() -> None:
    protocol = negotiated()
    message = last_message(protocol)
    with pytest.raises(ValueError, match="is no field"):
        protocol.encode(message, Changes(mime=b"nonsense"))
    assert protocol.due
    protocol.refuse(451, "later")


@pytest.mark.parametrize(
    ("action", "changes", "what"),
    [
        (0x1, Changes(mime=b"X: 1\r\nSubject: hello\r\n\tworld\r\nX-Empty:\r\n\r\nbody\r\nmore\r\n"), "add a field"),
        (0x2, Changes(mime=b"Subject: hello\r\n\tworld\r\nX-Empty:\r\n\r\nx"), "replace the body"),
        (0x4, Changes(added=["d@example.org"]), "add a recipient"),
        (0x8, Changes(removed=[b"<b@example.org>"]), "take a recipient away"),
        (0x10, Changes(mime=b"X-Empty:\r\n\r\nbody\r\nmore\r\n"), "change a field"),
        (0x20, Changes(quarantine="odd"), "keep a message in quarantine"),
        (0x40, Changes(sender=""), "replace the sender"),
    ],
)
def test_what_a_server_did_not_offer_to_do_is_told(action: int, changes: Changes, what: str) -> None:
    protocol = MilterProtocol(Wanted())
    protocol.receive(packet(b"O", struct.pack("!III", 6, 0x1FF & ~action, 0x1FFFFF)))
    assert protocol.next_event() is None
    assert split_packets(protocol.take_output())[0][1] == struct.pack("!III", 6, 0x1FF & ~action, 0x1F0180)
    message = last_message(protocol)
    with pytest.raises(ValueError, match=f"did not offer to {what}"):
        protocol.encode(message, changes)
    assert protocol.due


def test_a_source_route_is_left_out() -> None:
    """Postfix, too, delivers to the address behind it, which is what it has to be told to take away."""
    protocol = negotiated()
    protocol.receive(CONNECT + packet(b"M", b"<@r.example,@s.example:a@example.org>\0"))
    protocol.receive(packet(b"R", b"<@r.example:b@example.org>\0") + packet(b"R", b'<"@:"@example.org>\0') + packet(b"E"))
    seen = []
    while not isinstance(event := protocol.next_event(), Message):
        seen.append(getattr(event, "address", None))
        protocol.proceed()
    assert seen == [None, "a@example.org", "b@example.org", '"@:"@example.org']
    encoded = protocol.encode(event, Changes(removed=[b"<@r.example:b@example.org>", b'<"@:"@example.org>']))
    assert split_packets(encoded) == [
        (b"-", b"<@r.example:b@example.org>\0"),
        (b"-", b"<b@example.org>\0"),
        (b"-", b'<"@:"@example.org>\0'),
    ]


def test_progress_is_for_who_takes_it() -> None:
    """Sendmail answers 451 to a client when progress comes before the message."""
    for version, early in ((b"Postfix 3.7.11", True), (b"8.17.1", False)):
        protocol = negotiated()
        protocol.receive(packet(b"D", b"C" + parameters(b"v", version)) + CONNECT)
        assert isinstance(protocol.next_event(), Connect)
        assert protocol.takes_progress is early
        protocol.proceed()
        with pytest.raises(RuntimeError, match="nobody waits"):
            protocol.progress()
        protocol.receive(b"".join(TRANSACTION))
        while not isinstance(protocol.next_event(), Message):
            protocol.proceed()
        protocol.take_output()
        assert protocol.takes_progress
        protocol.progress()
        assert split_packets(protocol.take_output()) == [(b"p", b"")]


def test_an_answer_that_is_not_due_is_a_mistake() -> None:
    protocol = negotiated()
    for answer in (protocol.proceed, protocol.discard, lambda: protocol.refuse(550, "no")):
        with pytest.raises(RuntimeError, match="no answer is due"):
            answer()


pieces = st.sampled_from(
    [OFFER, POSTFIX, CONNECT, packet(b"H", b"me\0"), *TRANSACTION, packet(b"A"), packet(b"K"), packet(b"Q")]
)
anything = st.builds(packet, st.binary(min_size=1, max_size=1), st.binary(max_size=12))


@settings(max_examples=examples(3000))
@given(st.lists(st.one_of(pieces, anything, st.binary(max_size=8)), max_size=20), st.integers(0, 3))
def test_whatever_comes_is_an_event_or_a_milter_error(data: list[bytes], answer: int) -> None:
    protocol = MilterProtocol(Wanted(), 1000)
    protocol.receive(OFFER)
    for each in data:
        protocol.receive(each)
        try:
            while (event := protocol.next_event()) is not None:
                if not protocol.due:
                    continue
                if answer == 1:
                    protocol.refuse(451, "later")
                elif answer == 2 and isinstance(event, Message):
                    protocol.finish(protocol.encode(event, Changes(mime=event.mime + b"x")))
                else:
                    protocol.proceed()
        except MilterError:
            return
        assert protocol._size <= 1000 + LARGEST
        split_packets(protocol.take_output())


def converse(data: list[bytes], answer: bool) -> tuple[list[Event], bytes, str]:
    """What comes of it: events, what is said, and what is wrong with it. Answers are given at once."""
    protocol, seen, said = MilterProtocol(Wanted(), 1000), [], []
    try:
        for each in data:
            protocol.receive(each)
            while (event := protocol.next_event()) is not None:
                seen.append(event)
                if protocol.due:
                    protocol.proceed() if answer else protocol.refuse(451, "later")
            said.append(protocol.take_output())
    except MilterError as error:
        return seen, b"", str(error)
    return seen, b"".join(said), ""


@settings(max_examples=examples(1000))
@given(st.lists(st.one_of(pieces, anything), max_size=20), st.lists(st.integers(0, 600), max_size=8), st.booleans())
def test_it_does_not_matter_how_bytes_come(data: list[bytes], cuts: list[int], answer: bool) -> None:
    whole = OFFER + b"".join(data)
    places = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
    parts = [whole[begin:end] for begin, end in itertools.pairwise(places)]
    assert converse(parts, answer) == converse([whole], answer)
