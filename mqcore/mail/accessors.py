"""What native plugins see of a `Mail`."""

from __future__ import annotations

import json

from ..accessors import Accessors, register
from .message import Mail


class MailAccessors(Accessors):
    """The mail and its JSON. Whoever has a connection to talk to registers accessors for a class of its own."""

    def secure(self, message: Mail) -> bool:
        return message.connection is not None and message.connection.tls

    def authenticated(self, message: Mail) -> bool:
        return message.connection is not None and message.connection.authenticated is not None

    def envelope(self, message: Mail) -> str | None:
        return message.envelope

    def set_envelope(self, message: Mail, address: str | None) -> None:
        message.envelope = address

    def recipient(self, message: Mail) -> str | None:
        return message.recipient

    def set_recipient(self, message: Mail, address: str | None) -> None:
        message.recipient = address

    def mime(self, message: Mail) -> bytes | None:
        return message.mime

    def set_mime(self, message: Mail, mime: bytes) -> None:
        message.mime = mime

    def local(self, message: Mail) -> bool:
        return message.json.get("local") is True

    def set_local(self, message: Mail, local: bool) -> None:
        message.json["local"] = local

    def json(self, message: Mail) -> str | None:
        return json.dumps(message.json, ensure_ascii=False)

    def set_json(self, message: Mail, text: bytes) -> None:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError(f"the JSON of a mail is an object, not {text!r}")
        message.json = value


register(Mail, MailAccessors())
