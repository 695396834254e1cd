"""The body of a message that is a mail: JSON with MailerQ's keys, or the mail as it is.

`mime` is the mail as text, in UTF-8. A mail that is no UTF-8 goes as `mime-base64`, so that each comes out byte for byte as it
went in. All other keys are the mail's `json`.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]

MAX_BODY = 50 << 20
"""Octets, when gzip is undone."""
RAW = "message/rfc822"
MIME, MIME_BASE64 = "mime", "mime-base64"
STORED = "key"
"""Where MailerQ keeps mails in a message store, the JSON has this, which names one, and no mail."""
PLAIN = frozenset(("", "identity", "utf-8"))
"""Encodings that change no octets; some clients say which charset they have."""


class Unreadable(ValueError):
    """What is no mail for us, nor will it ever be."""


class Body(NamedTuple):
    mime: bytes
    json: dict[str, Any]


def read_body(body: bytes, content_type: str | None = None, content_encoding: str | None = None) -> Body:
    """Raises Unreadable."""
    encoding = (content_encoding or "").strip().lower()
    if encoding == "gzip":
        body = _gunzip(body)
    elif encoding not in PLAIN:
        raise Unreadable(f"its content-encoding {content_encoding!r} is not known; it can be gzip")
    if (content_type or "").partition(";")[0].strip().lower() == RAW:
        return Body(body, {})
    known = _load(body)
    mime = _take_mime(known)
    check_addresses(known)
    return Body(mime, known)


def check_addresses(known: Mapping[str, Any]) -> None:
    """Raises Unreadable."""
    for name in ("envelope", "recipient"):
        if not _is_address(known.get(name)):
            raise Unreadable(f"its {name!r} is no address")
    recipients = known.get("recipients")
    if recipients is not None and not (
        isinstance(recipients, list) and all(one is not None and _is_address(one) for one in recipients)
    ):
        raise Unreadable("its 'recipients' is no list of addresses")


def write_body(mime: bytes, known: Mapping[str, Any]) -> bytes:
    """Raises ValueError for what a plugin put into `json` and JSON has no room for."""
    whole = {name: value for name, value in known.items() if name not in (MIME, MIME_BASE64)}
    try:
        whole[MIME] = mime.decode()
    except UnicodeDecodeError:
        whole[MIME_BASE64] = base64.b64encode(mime).decode()
    return dump(whole)


def dump(value: Any) -> bytes:
    """As JSON. Raises ValueError."""
    if orjson is not None:
        try:
            return orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME)
        except TypeError:
            pass  # json knows more, as keys that are numbers, or says best what is wrong
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it cannot be written as JSON: {error}") from error


def _load(body: bytes) -> dict[str, Any]:
    try:
        value = _parse(body)
    except UnicodeDecodeError as error:
        raise Unreadable("its body is not UTF-8, as JSON is") from error
    except RecursionError as error:
        raise Unreadable("its body is JSON with too much within each other") from error
    except ValueError as error:
        raise Unreadable(f"its body is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Unreadable(f"its body is JSON, but {type(value).__name__}, where an object is needed")
    return value


def _parse(body: bytes) -> Any:
    if orjson is not None:
        try:
            return orjson.loads(body)
        except ValueError:
            pass  # json says the same, or takes what is unusual, as half a surrogate pair
    return json.loads(body.decode(), parse_constant=_no_constant)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _take_mime(known: dict[str, Any]) -> bytes:
    has_text, has_base64 = MIME in known, MIME_BASE64 in known
    mime, encoded = known.pop(MIME, None), known.pop(MIME_BASE64, None)
    if has_text and has_base64:
        raise Unreadable(f"it has both {MIME!r} and {MIME_BASE64!r}")
    if isinstance(mime, str):
        try:
            return mime.encode()
        except UnicodeEncodeError as error:
            raise Unreadable(f"its {MIME!r} is no text: {error.reason}") from error
    if isinstance(encoded, str):
        try:
            return base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise Unreadable(f"its {MIME_BASE64!r} is no base64") from error
    if not has_text and not has_base64:
        raise Unreadable(
            "it is in a message store, which this has not: no message store" if STORED in known else f"it has no {MIME!r}"
        )
    raise Unreadable(
        f"its {MIME if has_text else MIME_BASE64!r} is {type(mime if has_text else encoded).__name__}, where text is needed"
    )


def _is_address(value: Any) -> bool:
    return value is None or (isinstance(value, str) and "\r" not in value and "\n" not in value)


def _gunzip(data: bytes) -> bytes:
    """All members, one behind the other. Never takes much more memory than `MAX_BODY`."""
    parts: list[bytes] = []
    size = 0
    while data:
        member = zlib.decompressobj(wbits=31)
        try:
            parts.append(member.decompress(data, MAX_BODY - size + 1))
        except zlib.error as error:
            raise Unreadable(f"its gzip is broken: {error}") from error
        size += len(parts[-1])
        if size > MAX_BODY:
            raise Unreadable(f"it has more than {MAX_BODY} octets once gzip is undone")
        if not member.eof:
            raise Unreadable("its gzip ends too early")
        data = member.unused_data
    if not parts:
        raise Unreadable("its gzip ends too early")
    return b"".join(parts)
