"""What the tests of SMTP share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mqcore.mail.smtp_dialogue import Dialogue, Event, Service, StartTls

Answer = Callable[[Dialogue, Event], None]

EHLO = b"EHLO client.example\r\n"
OPEN = EHLO + b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
"""As far as a message may follow."""


def accept(dialogue: Dialogue, event: Event) -> None:
    if isinstance(event, StartTls):
        dialogue.secured()
    dialogue.accept()


class Talk:
    """A dialogue whose events are answered at once."""

    def __init__(self, answer: Answer = accept, *, secure: bool = False, **service: Any) -> None:
        self.dialogue = Dialogue(Service(name="mx.example", **service), secure=secure)
        self.answer = answer
        self.events: list[Event] = []
        self.dialogue.accept()
        self.out = self.dialogue.take_output()

    def say(self, data: bytes) -> list[str]:
        """The replies to it, without line ends."""
        self.dialogue.receive(data)
        while (event := self.dialogue.next_event()) is not None:
            self.events.append(event)
            self.answer(self.dialogue, event)
        out = self.dialogue.take_output()
        self.out += out
        assert out.endswith(b"\r\n") or not out
        return out.decode("ascii").split("\r\n")[:-1]


def converse(pieces: Iterable[bytes], **options: Any) -> tuple[list[Event], bytes, bool]:
    """The events, all that the server said, and whether it closed the connection."""
    talk = Talk(**options)
    for piece in pieces:
        if talk.dialogue.closed:
            break
        talk.say(piece)
    return talk.events, talk.out, talk.dialogue.closed


def codes(replies: Iterable[str]) -> list[str]:
    """The codes of replies of one line each, with their enhanced codes."""
    return [reply[:9] if reply[4:5] in "245" and reply[5:6] == "." else reply[:3] for reply in replies]
