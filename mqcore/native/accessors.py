"""How native plugins reach what a message carries: `MQ_mime(message)` asks the accessors of the message's class.

The core knows nothing of mail. So whoever defines a class of messages registers its accessors:

    mqcore.native.accessors.register(Mail, MailAccessors())
"""

from __future__ import annotations

import functools
from typing import Any

from .._message import Message


class Accessors:
    """What the functions of `mqcore.h` mean for one class of messages. Derive from it, and define what there is.

    Called on the dispatcher's thread. As they are, they answer for a message without a mail and without a connection.
    What one raises is logged under the plugin's name, and the plugin gets what it would have got here.
    """

    def data(self, message: Any) -> dict[Any, Any]:
        """A dict for plugins that lives as long as the connection, or where there is none, as the message."""
        data: dict[Any, Any] = message.data
        return data

    def file_descriptor(self, message: Any) -> int:
        """The connection's socket, or -1."""
        return -1

    def send(self, message: Any, data: bytes) -> bool:
        """Send bytes over the connection. Whether there is one; what cannot be sent at once must be kept."""
        return False

    def secure(self, message: Any) -> bool:
        """Whether the connection is encrypted."""
        return False

    def authenticated(self, message: Any) -> bool:
        """Whether the client has logged in."""
        return False

    def set_authenticated(self, message: Any, authenticated: bool) -> None:
        """Let the client's login count, or not."""

    def reply_due(self, message: Any) -> bool:
        """Whether the other side waits for a reply, and would take for it whatever is sent now. `MQ_send` is refused then."""
        return False

    def helo(self, message: Any) -> str | None:
        """What the other side calls itself."""
        return None

    def peer(self, message: Any) -> str | None:
        """Its address."""
        return None

    def reject(self, message: Any, code: int, text: str) -> bool:
        """Refuse it. Whether that can be done: where not, or where this raises, the step fails when the plugin is done."""
        return False

    def envelope(self, message: Any) -> str | None:
        """The sender's address, "" for a bounce."""
        return None

    def set_envelope(self, message: Any, address: str | None) -> None:
        """Change it."""

    def recipient(self, message: Any) -> str | None:
        """The recipient's address."""
        return None

    def set_recipient(self, message: Any, address: str | None) -> None:
        """Change it."""

    def mime(self, message: Any) -> bytes | None:
        """The mail."""
        return None

    def set_mime(self, message: Any, mime: bytes) -> None:
        """Change it."""

    def header(self, message: Any, name: str) -> str | None:
        """The first field of that name in the mail's header."""
        return None

    def add_header(self, message: Any, name: str, value: str) -> None:
        """Put a field above all others."""

    def local(self, message: Any) -> bool:
        """Whether it is to be delivered here."""
        return False

    def set_local(self, message: Any, local: bool) -> None:
        """Change it."""

    def json(self, message: Any) -> str | None:
        """All that is known about the mail, as JSON text."""
        return None

    def set_json(self, message: Any, json: bytes) -> None:
        """Change it; raises ValueError when that is no JSON object."""


_registered: dict[type[Message], Accessors] = {Message: Accessors()}


def register(kind: type[Message], accessors: Accessors) -> None:
    """Have native plugins reach messages of the class `kind`, and of its subclasses, by `accessors`. Any thread."""
    _registered[kind] = accessors
    accessors_of.cache_clear()


@functools.cache
def accessors_of(kind: type[Message]) -> Accessors:
    """Those that are registered for the class, or for the nearest of its bases."""
    return next(_registered[base] for base in kind.__mro__ if base in _registered)
