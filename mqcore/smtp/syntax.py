"""What SMTP's commands and replies look like: addresses, parameters, codes."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MAX_ADDRESS = 254
"""In octets: a path has 256 at most, with its angle brackets (RFC 5321, 4.5.3.1.3)."""

NO_MEMORY = "4.3.1 there is no memory for this message; try again later"
SHUTTING_DOWN = "4.3.2 this server is shutting down"
"""What our own server says, at more places than one."""

NO_BASE64 = "501 5.5.2 this is not base64 of UTF-8"

_ATOM = r'[^\s"(),:;<>@\[\\\]]+'
_LABEL = r'[^\s"(),:;<>@\[\\\].]+'
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[^\s<>\[\\\]]+\])"
_ADDRESS = rf'(?:{_ATOM}|"(?:[^"\\]|\\.)*")@{_DOMAIN}'
_ROUTE = rf"(?:@{_DOMAIN}(?:,@{_DOMAIN})*:)?"  # to be taken, and to be ignored

parse_from = re.compile(rf"FROM: ?<(?:{_ROUTE}({_ADDRESS})|)>(?: +(.*))?", re.IGNORECASE).fullmatch
"""Matches what follows MAIL. The groups are the address, None if it is empty, and the parameters."""
parse_to = re.compile(rf"TO: ?<{_ROUTE}({_ADDRESS}|postmaster)>(?: +(.*))?", re.IGNORECASE).fullmatch
"""Matches what follows RCPT, with the same groups."""
has_path = re.compile(r"[A-Z]+: ?<[^<>]+>(?: .*)?", re.IGNORECASE).fullmatch
"""Whether it is right but for what is in the brackets (RFC 5321, 4.2.2: 553)."""

find_control = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]").search
"""Control characters, and others that some programs take for the end of a line."""

_PATH = re.compile(r'(?:"(?:[^"\\]|\\.)*"(?:@[^\s<>"]+)?|[^\s<>"]+)').fullmatch

_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?: |\Z)").match
_LONGEST_TEXT = 500
"""A reply has 512 octets at most (RFC 5321, 4.5.3.1.5)."""

MAIL_DSN = ("RET", "ENVID")
RCPT_DSN = ("NOTIFY", "ORCPT")
_ALWAYS = ("SIZE", "BODY", "SMTPUTF8")
_KNOWN = {
    (auth, dsn): (*_ALWAYS, *(("AUTH",) if auth else ()), *(MAIL_DSN if dsn else ()))
    for auth in (False, True)
    for dsn in (False, True)
}
"""The parameters of MAIL, by whether AUTH and DSN are among them."""
_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})"
_CLEAN = r"(?!.*\+0[0AD])"
"""What stands for a NUL, a CR or a LF would be one in a notification."""
_DSN = {
    "RET": re.compile(r"FULL|HDRS", re.IGNORECASE),
    "ENVID": re.compile(rf"{_CLEAN}{_XTEXT}{{1,100}}"),
    "NOTIFY": re.compile(r"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY)){0,2}", re.IGNORECASE),
    "ORCPT": re.compile(rf"{_CLEAN}[A-Za-z0-9-]+;{_XTEXT}{{1,500}}|(?i:utf-8);[!-<>-~]{{1,500}}"),
}

_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^\s=]+))?")


class ReplyError(Exception):
    """What the client said is refused, with this reply (without its line end)."""


class Parameters(NamedTuple):
    """What MAIL says about the mail that follows."""

    size: int = 0
    utf8: bool = False
    dsn: dict[str, str] | None = None
    """RET and ENVID, by their names in small letters."""


def parse_mail(text: str, *, auth: bool, dsn: bool = False, lenient: bool = False) -> Parameters:
    """The parameters of MAIL; AUTH and those of DSN only where that is offered. Raises ReplyError for what is no parameter.

    If this is `lenient`, they are in any case, and of what is given twice the last counts."""
    known = _KNOWN[auth or lenient, dsn or lenient]
    values = _split(text, known, lenient=lenient)
    size = values.get("SIZE", "0")
    if size is None or not (size.isascii() and size.isdecimal() and len(size) <= 20):
        raise ReplyError("501 5.5.4 SIZE takes a number of octets")
    body = values.get("BODY", "7BIT")
    if body is None or body.upper() not in ("7BIT", "8BITMIME"):
        raise ReplyError("501 5.5.4 BODY takes 7BIT or 8BITMIME")
    if values.get("SMTPUTF8") is not None:
        raise ReplyError("501 5.5.4 SMTPUTF8 takes no value")
    return Parameters(int(size), "SMTPUTF8" in values, _check_dsn(values, MAIL_DSN) if dsn or lenient else None)


def parse_rcpt(text: str, *, dsn: bool = False, lenient: bool = False) -> dict[str, str]:
    """NOTIFY and ORCPT, by their names in small letters, if DSN is offered, or this is `lenient`. Raises ReplyError."""
    known = RCPT_DSN if dsn or lenient else ()
    return _check_dsn(_split(text, known, lenient=lenient), RCPT_DSN)


def _split(text: str, known: Iterable[str], *, lenient: bool) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for word in text.split():
        match = _PARAMETER.fullmatch(word)
        name = match[1].upper() if match else ""
        if match is None or (name in values and not lenient):
            raise ReplyError("501 5.5.4 this parameter is malformed, or given twice")
        if name not in known:
            raise ReplyError("555 5.5.4 this parameter is not known here")
        values[name] = match[2]
    return values


# Delivery status notifications (RFC 3461): what a client says of them is given to the next server as it is


def _check_dsn(values: Mapping[str, str | None], names: Iterable[str]) -> dict[str, str]:
    dsn = {}
    for name in names:
        if name in values:
            value = values[name]
            if not _is_dsn(name, value):
                raise ReplyError(f"501 5.5.4 this is no value of {name}")
            dsn[name.lower()] = str(value)
    return dsn


def _is_dsn(name: str, value: object) -> bool:
    return isinstance(value, str) and _DSN[name].fullmatch(value) is not None


def write_dsn(names: Iterable[str], values: object) -> str:
    """The parameters of these names, each with a blank in front. What plugins made of `values` may be anything."""
    if not isinstance(values, Mapping):
        return ""
    found = ((name, values.get(name.lower())) for name in names)
    return "".join(f" {name}={value}" for name, value in found if _is_dsn(name, value))


def check_address(address: str, *, utf8: bool) -> None:
    """Raises ReplyError for an address that is too long, or not in ASCII when the client did not say SMTPUTF8."""
    if len(address) > MAX_ADDRESS:
        raise ReplyError("553 5.1.0 this address is too long")
    if not address.isascii():
        if not utf8:
            raise ReplyError("553 5.6.7 an address like this needs SMTPUTF8 in MAIL")
        if len(address.encode()) > MAX_ADDRESS:
            raise ReplyError("553 5.1.0 this address is too long")


def is_safe(address: str, *, raw: bool = False) -> bool:
    """Whether it can stand between angle brackets in a command, and be nothing else; its server may know more of it.

    With `raw`, it may have bytes that are no UTF-8 (as surrogates)."""
    return _PATH(address) is not None and not find_control(address) and _can_be_encoded(address, raw=raw)


def _can_be_encoded(address: str, *, raw: bool) -> bool:
    try:
        address.encode(errors="surrogateescape" if raw else "strict")
    except UnicodeEncodeError:  # from bytes that were no UTF-8
        return False
    return True


def decode_base64(text: str) -> str:
    """The text that a client sends in an AUTH exchange, where `=` stands for an empty one. Raises ReplyError."""
    if text == "*":
        raise ReplyError("501 5.7.0 AUTH is cancelled")
    if text == "=":
        return ""
    try:
        return base64.b64decode(text, validate=True).decode()
    except ValueError:  # not base64, which is ASCII, or not UTF-8
        raise ReplyError(NO_BASE64) from None


def parse_plain(text: str) -> tuple[str, str]:
    """Login and password from what AUTH PLAIN sends. Raises ReplyError."""
    parts = decode_base64(text).split("\0")
    if len(parts) != 3:
        raise ReplyError("501 5.5.2 AUTH PLAIN takes base64 of NUL, login, NUL, password")
    if parts[0] not in ("", parts[1]):
        raise ReplyError("535 5.7.8 nobody may act for another here")
    return parts[1], parts[2]


def format_reply(code: int, text: str) -> str:
    """A reply of one line, with an enhanced code in front of the text unless it has one."""
    if not _ENHANCED(text):
        text = f"{code // 100}.7.1 {text}"
    return f"{code} {printable(text)}"


def printable(text: str) -> str:
    """As it can stand in a reply, also behind an enhanced code."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:_LONGEST_TEXT])
