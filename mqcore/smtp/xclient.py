"""XCLIENT and XFORWARD, by which Postfix and others say for whom they speak.

See https://www.postfix.org/XCLIENT_README.html and XFORWARD_README.html.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

from .syntax import ReplyError

XCLIENT = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT")
XFORWARD = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE")

MAX_VALUE = 255
MAX_COMMAND = 512
_UNKNOWN = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})+").fullmatch
_HEX = re.compile(r"\+([0-9A-Fa-f]{2})")
_TO_ESCAPE = re.compile(r"[^!-*,-<>-~]")
_PORT = re.compile(r"\d{1,5}", re.ASCII).fullmatch
_ADDRESSES = ("ADDR", "DESTADDR")
_PORTS = ("PORT", "DESTPORT")


def parse(argument: str, names: Iterable[str]) -> dict[str, str | None]:
    """The attributes, by their names in small letters; None for one that is not known to the client. Raises ReplyError."""
    values: dict[str, str | None] = {}
    if not argument:
        raise ReplyError("501 5.5.4 say attribute=value")
    for word in argument.split(" "):
        name, equals, text = word.partition("=")
        name = name.upper()
        if not equals or name not in names or name.lower() in values or not 0 < len(text) <= MAX_VALUE:
            raise ReplyError("501 5.5.4 this is no attribute=value that is known here, or is given twice")
        values[name.lower()] = None if text.upper() in _UNKNOWN else _decode(name, text)
    return values


def _decode(name: str, text: str) -> str:
    if not _XTEXT(text):
        raise ReplyError(f"501 5.5.4 the value of {name} is no xtext")
    value = _HEX.sub(lambda match: chr(int(match[1], 16)), text)
    if name in _ADDRESSES:
        return _parse_address(name, value)
    if name in _PORTS and not _PORT(value):
        raise ReplyError(f"501 5.5.4 {name} takes a number")
    return "".join(character if " " <= character <= "~" else "?" for character in value)


def _parse_address(name: str, text: str) -> str:
    try:
        if text[:5].upper() == "IPV6:":
            return str(ipaddress.IPv6Address(text[5:].partition("%")[0]))
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ReplyError(f"501 5.5.4 {name} takes an IP address") from None


def write(values: Mapping[str, str | None], offered: Iterable[str]) -> list[bytes]:
    """The XFORWARD commands that say this to a server that offers these attributes."""
    commands: list[bytes] = []
    for name in offered:
        if name not in XFORWARD or name.lower() not in values:
            continue
        attribute = b" %b=%b" % (name.encode(), _encode(name, values[name.lower()]))
        if not commands or len(commands[-1]) + len(attribute) > MAX_COMMAND - 2:
            commands.append(b"XFORWARD")
        commands[-1] += attribute
    return [command + b"\r\n" for command in commands]


def _encode(name: str, value: object) -> bytes:
    if not isinstance(value, str) or not value:
        return b"[UNAVAILABLE]"
    if name == "ADDR" and ":" in value:
        value = f"IPV6:{value}"
    text = _TO_ESCAPE.sub(lambda match: "".join(f"+{octet:02X}" for octet in match[0].encode(errors="replace")), value)
    return text.encode() if len(text) <= MAX_VALUE else b"[UNAVAILABLE]"
