"""Addresses and parameters as Postfix takes them, for a server behind one that took them already.

A path is read as Postfix reads it (its smtpd_token.c and tok822_parse.c): first what belongs to it, up to a blank outside of
brackets and quotes; then the one address that is in it, as in a header. What comes out is an address of RFC 5321, so that no
other server reads it in another way: what is no word in front of the `@` is quoted. It may have no domain, and 8-bit
characters that nobody announced, also such as are no UTF-8 (as surrogates, see PEP 383).
"""

from __future__ import annotations

import re

_STRING = r'"(?:[^"\\]|\\.)*+"'
_INNER = rf'<(?:[^<>"\\]|\\.|{_STRING})*+>'
_BRACKETS = rf'<(?:[^<>"\\]|\\.|{_STRING}|{_INNER})*+>'
_PATH = re.compile(rf'(?:[^ <"\\]|\\.|{_STRING}|{_BRACKETS})++')
"""Up to a blank; brackets within brackets, once."""
_TOKEN = re.compile(
    rf"(?P<blank> +)|(?P<comment>\()|(?P<literal>\[(?:[^\]\\]|\\.)*+\])|(?P<quoted>{_STRING})"
    r"""|(?P<word>(?:[^ "(),.:;<>@\[\]\\]|\\.)++)|(?P<special>.)"""
)
_PAIR = re.compile(r"\\(.)")
_DOT_ATOM = re.compile(r'[^\s"(),:;<>@\[\\\]]+').fullmatch
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"').fullmatch
_LABEL = r'[^\s"(),.:;<>@\\\[\]]+'
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*|\[[^\s<>\[\\\]]+\]").fullmatch


def parse_path(argument: str, keyword: str) -> tuple[str, str] | None:
    """The address, which may be empty, and the parameters of what follows MAIL or RCPT; None if there is no address in it."""
    begin = len(keyword) + 1
    if argument[:begin].upper() != f"{keyword}:":
        return None
    text = argument[begin:].lstrip(" ")
    match = _PATH.match(text)
    if match is None or text[match.end() : match.end() + 1] not in ("", " "):
        return None
    address = _find_address(match[0])
    return None if address is None else (address, text[match.end() :].strip(" "))


def _find_address(path: str) -> str | None:
    """None if there is none, or several."""
    if path.startswith("<") and path.endswith(">"):
        path = path[1:-1]
    if path.startswith("@") and ":" in path:
        path = path.partition(":")[2]  # the way that a mail was to take, long ago
    tokens = _scan(path)
    if ("special", "<") in tokens:
        tokens = tokens[len(tokens) - tokens[::-1].index(("special", "<")) :]
    if ("special", ">") in tokens:
        at = tokens.index(("special", ">"))
        if any(text.strip(" >") for _, text in tokens[at:]):
            return None
        tokens = tokens[:at]
    while tokens and tokens[0][0] == "blank":
        del tokens[0]
    while tokens and tokens[-1][0] == "blank":
        del tokens[-1]
    if any(kind == "blank" or text in ",;" for kind, text in tokens):
        return None
    return _write(tokens)


def _scan(text: str) -> list[tuple[str, str]]:
    """Kinds and texts, without comments."""
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None and match.lastgroup is not None
        at = match.end()
        if match.lastgroup == "comment":
            at = _skip_comment(text, at)
        else:
            tokens.append((match.lastgroup, match[0]))
    return tokens


def _skip_comment(text: str, at: int) -> int:
    depth = 1
    while at < len(text) and depth:
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 2 if text[at] == "\\" else 1
    return min(at, len(text))


def _write(tokens: list[tuple[str, str]]) -> str | None:
    """The address of these."""
    if ("special", "@") not in tokens:
        local = _write_local(tokens)
        return "" if local == '""' else local
    at = len(tokens) - tokens[::-1].index(("special", "@"))
    domain = "".join(text for _, text in tokens[at:]).removesuffix(".")
    if not _DOMAIN(domain):
        return None
    return f"{_write_local(tokens[: at - 1])}@{domain}"


def _write_local(tokens: list[tuple[str, str]]) -> str:
    text = "".join(text for _, text in tokens)
    if _DOT_ATOM(text) or _QUOTED(text):
        return text
    plain = "".join(_PAIR.sub(r"\1", text[1:-1] if kind == "quoted" else text) for kind, text in tokens)
    return '"{}"'.format(re.sub(r'(["\\])', r"\\\1", plain))
