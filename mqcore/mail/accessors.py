"""What native plugins see of a `Mail`."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from ..native.accessors import Accessors, register
from ._mail import Mail


class MailAccessors(Accessors):
    """The mail, its JSON, and the connection that it came by, if any."""

    def data(self, message: Mail) -> dict[Any, Any]:
        return message.data if message.connection is None else message.connection.data

    def file_descriptor(self, message: Mail) -> int:
        transport = _transport(message)
        socket = None if transport is None else transport.get_extra_info("socket")
        return -1 if socket is None else socket.fileno()

    def send(self, message: Mail, data: bytes) -> bool:
        transport = _transport(message)
        if transport is not None:
            transport.write(data)
        return transport is not None

    def secure(self, message: Mail) -> bool:
        return message.connection is not None and message.connection.tls

    def authenticated(self, message: Mail) -> bool:
        return message.connection is not None and message.connection.authenticated

    def set_authenticated(self, message: Mail, authenticated: bool) -> None:
        if message.connection is not None:
            message.connection.authenticated = authenticated

    def reply_due(self, message: Mail) -> bool:
        transport = _transport(message)
        return transport is not None and getattr(transport.get_protocol(), "owes_reply", False) is True

    def helo(self, message: Mail) -> str | None:
        return None if message.connection is None else message.connection.helo

    def peer(self, message: Mail) -> str | None:
        return None if message.connection is None else message.connection.peer

    def reject(self, message: Mail, code: int, text: str) -> bool:
        message.reject(code, text)
        return True

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

    def header(self, message: Mail, name: str) -> str | None:
        return message.headers.get(name)

    def add_header(self, message: Mail, name: str, value: str) -> None:
        message.headers.add(name, value)

    def local(self, message: Mail) -> bool:
        return message.json.get("local") is True

    def set_local(self, message: Mail, local: bool) -> None:
        message.json["local"] = local

    def json(self, message: Mail) -> str | None:
        return json.dumps(message.json, ensure_ascii=False)

    def set_json(self, message: Mail, text: bytes) -> None:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if not isinstance(value, dict):
            raise ValueError(f"the JSON of a mail is an object, not {text!r}")
        message.json = value


def _finite(text: str) -> float:
    """The number in JSON text: one that no JSON text can have, which Python takes, is refused."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number in JSON")
    return number


def _transport(message: Mail) -> asyncio.Transport | None:
    transport = None if message.connection is None else message.connection.transport
    return None if transport is None or transport.is_closing() else transport


register(Mail, MailAccessors())
