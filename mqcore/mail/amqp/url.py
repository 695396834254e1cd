"""`amqp://USER:PASS@HOST:PORT/VHOST?queue=NAME`: where a queue is, and how it is used. What is said of a URL never has its
password in it, so nothing of the URL is repeated that might be one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote

PORTS = {"amqp": 5672, "amqps": 5671}
USAGE = "//HOST/VHOST?queue=NAME"
MAX_NAME = 255
"""Octets of a queue's name."""
FAILED = ".failed"
"""What a queue's name gets for that of the queue of what failed."""
RETRY = ".retry."
"""And for that of a queue in which mails wait so many seconds."""
LADDER = (60, 300, 900, 3600)
LONGEST_RETRY = 604_800
MOST_RUNGS = 20

# An @ behind the host is of a password that has a / or ? in it, which must not be taken for something that may be shown.
_FORM = re.compile(
    r"""//(?:(?P<login>[^/?#]*)@)?
    (?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?
    (?:/(?P<vhost>[^/?#@]*))?
    \?(?P<query>[^#@]*)""",
    re.VERBOSE,
)


class AmqpUrl(NamedTuple):
    scheme: str
    host: str
    port: int
    vhost: str
    queue: str
    user: str | None = None
    password: str | None = None
    exchange: str = ""
    declares: bool = True
    """Whether the queue is made if it is not there."""
    raw: bool = False
    """Whether the body is the mail as it is, not JSON."""
    max_message: int = 16 << 20
    """Octets of an encoded body."""
    heartbeat: int = 15
    failed: str = ""
    """The queue for what failed or was refused."""
    ladder: tuple[int, ...] = ()
    """Seconds until what failed or was deferred comes again, time after time; empty: it never does."""
    results: str = ""
    """The queue for what became of each mail, if there is to be one."""
    until_empty: bool = False

    def rung(self, seconds: int) -> str:
        """The queue in which mails wait for so long."""
        return f"{self.queue}{RETRY}{seconds}"

    def __str__(self) -> str:
        """For people and logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        vhost = "" if self.vhost == "/" else f"/{quote(self.vhost, safe='')}"
        exchange = f"exchange={quote(self.exchange)}&" if self.exchange else ""
        return f"{self.scheme}://{host}:{self.port}{vhost}?{exchange}queue={quote(self.queue)}"

    def __repr__(self) -> str:
        return f"<AmqpUrl {self}>"


def parse(scheme: str, path: str, side: str = "--to") -> AmqpUrl:
    """`path` is what follows the colon; `side`, the option that it is for, --from or --to. Raises ValueError."""
    match = _FORM.fullmatch(path)
    if match is None:
        hint = "" if "?" in path else "; which queue? write it as ?queue=NAME"
        if any(character in path.removeprefix("//").rpartition("@")[0] for character in "/?#"):
            hint = "; in a user and a password write / as %2F, ? as %3F, # as %23, @ as %40, : as %3A and % as %25"
        raise ValueError(f"this is no {scheme}: URL; write it as {scheme}://USER:PASS@HOST:PORT/VHOST?queue=NAME{hint}")
    port = int(match["port"] or PORTS[scheme])
    if not 0 < port < 65_536:
        raise ValueError(f"{scheme}: the port can be 1 to 65535, not {port}")
    user, password = _login(scheme, match["login"])
    parameters = _parameters(scheme, match["query"], side)
    queue = _name(scheme, "queue", parameters)
    return AmqpUrl(
        scheme,
        match["host"].strip("[]"),
        port,
        _decoded(scheme, "vhost", match["vhost"] or "/"),
        queue,
        user,
        password,
        exchange=_name(scheme, "exchange", parameters) if "exchange" in parameters else "",
        declares=_choice(scheme, "declare", parameters, "quorum", "no") == "quorum",
        raw=_choice(scheme, "format", parameters, "json", "mime") == "mime",
        max_message=_number(scheme, "max-message", parameters, 16 << 20, 1024, 512 << 20),
        heartbeat=_number(scheme, "heartbeat", parameters, 15, 1, 3600),
        failed=_name(scheme, "failed", parameters) if "failed" in parameters else f"{queue}{FAILED}",
        ladder=_ladder(scheme, queue, parameters) if side == "--from" else (),
        results=_name(scheme, "results", parameters) if "results" in parameters else "",
        until_empty=_choice(scheme, "until", parameters, "never", "empty") == "empty",
    )


KNOWN = {
    "--from": ("queue", "declare", "failed", "retry", "results", "heartbeat", "until"),
    "--to": ("queue", "exchange", "declare", "format", "max-message", "heartbeat"),
}


def _login(scheme: str, login: str | None) -> tuple[str | None, str | None]:
    if login is None:
        return None, None
    user, colon, password = login.partition(":")
    if not user or not colon:
        raise ValueError(f"{scheme}: a login is USER:PASS@, or comes by --credentials or --credentials-env")
    return _decoded(scheme, "user", user), _decoded(scheme, "password", password)


def _parameters(scheme: str, query: str, side: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if not equals or name not in KNOWN[side]:
            known = ", ".join(KNOWN[side])
            raise ValueError(
                f"{scheme}: {name[:30]!r} is no parameter of {side} {scheme}:; there are {known}, each as NAME=VALUE, "
                "& between them"
            )
        if name in parameters:
            raise ValueError(f"{scheme}: {name!r} is there twice")
        parameters[name] = _decoded(scheme, name, value)
    return parameters


def _decoded(scheme: str, name: str, value: str) -> str:
    try:
        text = unquote(value, errors="strict")
    except UnicodeDecodeError:
        text = "\0"
    if any(ord(character) < 32 for character in text):
        raise ValueError(f"{scheme}: its {name} is no text, once %XX is undone")
    return text


def _name(scheme: str, name: str, parameters: Mapping[str, str]) -> str:
    value = parameters.get(name, "")
    if not value:
        raise ValueError(f"{scheme}: which {name}? write it as ?{name}=NAME")
    if len(value.encode()) + len(FAILED) > MAX_NAME:
        raise ValueError(f"{scheme}: the name of the {name} is too long: AMQP has room for {MAX_NAME - len(FAILED)} octets")
    return value


def _ladder(scheme: str, queue: str, parameters: Mapping[str, str]) -> tuple[int, ...]:
    """Its rungs, the shortest first."""
    text = parameters.get("retry", ",".join(map(str, LADDER)))
    if text == "no":
        return ()
    rungs = text.split(",")
    if len(rungs) > MOST_RUNGS or not all(
        rung.isascii() and rung.isdigit() and len(rung) < 7 and 0 < int(rung) <= LONGEST_RETRY for rung in rungs
    ):
        raise ValueError(
            f"{scheme}: retry can be no, or up to {MOST_RUNGS} numbers of seconds from 1 to {LONGEST_RETRY}, with commas "
            f"between them, not {text!r}"
        )
    ladder = tuple(sorted(set(map(int, rungs))))
    if len(f"{queue}{RETRY}{ladder[-1]}".encode()) > MAX_NAME:
        raise ValueError(f"{scheme}: the name of the queue is too long, as {RETRY}{ladder[-1]} is put behind it")
    return ladder


def _choice(scheme: str, name: str, parameters: Mapping[str, str], usual: str, other: str) -> str:
    value = parameters.get(name, usual)
    if value not in (usual, other):
        raise ValueError(f"{scheme}: {name} can be {usual} or {other}, not {value!r}")
    return value


def _number(scheme: str, name: str, parameters: Mapping[str, str], usual: int, least: int, most: int) -> int:
    value = parameters.get(name, str(usual))
    if not (value.isascii() and value.isdigit() and len(value) < 12 and least <= int(value) <= most):
        raise ValueError(f"{scheme}: {name} can be {least} to {most}, not {value!r}")
    return int(value)
