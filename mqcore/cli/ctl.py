"""`mqcore ctl`: what a running server is asked, and told, by its control socket."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..mail.report import BAD_PLUGIN, OK, SOME_FAILED, UNREACHABLE, USAGE
from ..server import Reloaded, systemd
from ..server.logs import printable
from ..server.timeline import lines_of
from .configuration import count, duration
from .output import complain

if TYPE_CHECKING:
    from . import Commands

DEFAULT = "/run/mqcore"
"""Where the unit file of `contrib/` has its folder."""
PATIENCE = 5.0
"""Seconds until it says what it waits for."""
AT_ONCE = 0.2
"""The same, where waiting is what was asked for, and an answer that comes sooner is that it was asked wrongly."""
AGAIN = 1.0
"""How long it waits at a time from then on: a Ctrl-C that comes just before it begins to wait is seen when that is over."""
SOCKET = f"its control socket (default: {systemd.CONTROL} in $RUNTIME_DIRECTORY, or in {DEFAULT})"
JSON = "print the answer as JSON"
EXIT_CODES = """\
exit codes: 0 done; 1 the server says no; 2 wrong usage; 3 nothing was reloaded, all is as it was; 4 no server can be reached"""
_CODES = {"usage": USAGE, "reload": BAD_PLUGIN}


def add_to(commands: Commands) -> None:
    ctl = commands.add_parser("ctl", help="ask and steer a server that runs with --control", epilog=EXIT_CODES)
    ctl.add_argument("--json", action="store_true", help=JSON)
    ctl.add_argument("--socket", "--control", metavar="PATH", help=SOCKET)
    asked = ctl.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, what in _COMMANDS.items():
        parser = asked.add_parser(name, help=what.help)
        for argument, about in what.arguments.items():
            parser.add_argument(argument, **about)
        again = "the same as before the command"
        parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=JSON)
        parser.add_argument("--socket", "--control", metavar="PATH", default=argparse.SUPPRESS, help=again)
        parser.set_defaults(command=ask, parser=parser, name=name)


def ask(options: argparse.Namespace) -> int:
    request = {"command": options.name}
    for argument in _COMMANDS[options.name].arguments:
        name = argument.removeprefix("--")
        if (value := getattr(options, name)) is not None:
            request[name] = value
    path = path_of(options)
    try:
        answer = exchange(path, request, waiting=_COMMANDS[options.name].waits)
    except (OSError, ValueError) as error:
        return complain(explain(error, path), UNREACHABLE)
    if not answer["ok"]:
        return complain(answer["error"], _CODES.get(answer["kind"], SOME_FAILED))
    if options.json:
        print(json.dumps(answer["result"]))
    else:
        for line in _COMMANDS[options.name].show(answer["result"]):
            print(line)
    return OK


def path_of(options: argparse.Namespace) -> str:
    """Of the control socket."""
    given: str | None = options.socket
    return given or systemd.control_socket() or os.path.join(DEFAULT, systemd.CONTROL)


def exchange(path: str, request: dict[str, Any], *, waiting: str | None = None) -> dict[str, Any]:
    """The answer. `waiting`: what it waits for, if that may take any time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.settimeout(PATIENCE if waiting is None else AT_ONCE)
        server.connect(path)
        server.sendall(json.dumps(request).encode() + b"\n")
        parts: list[bytes] = []
        while not parts or not parts[-1].endswith(b"\n"):
            try:
                part = server.recv(1 << 16)
            except TimeoutError:
                if server.gettimeout() != AGAIN:
                    complain(waiting or f"waiting for the server at {path}, which is busy", OK)
                    server.settimeout(AGAIN)
                continue
            if not part:
                raise ConnectionResetError("it ended before it answered")
            parts.append(part)
    answer: dict[str, Any] = json.loads(b"".join(parts))
    return answer


def explain(error: Exception, path: str) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    match error:
        case FileNotFoundError():
            hint = "; is a server running with --control, and is this its path? (--socket PATH)"
        case ConnectionRefusedError() if os.path.isfile(path):
            hint = "; this is a file, and no socket"
        case ConnectionRefusedError():
            hint = "; the server that was there is gone"
        case PermissionError():
            hint = "; only the user who runs the server, and root, may use it"
        case _:
            hint = ""
    return f"cannot ask the server at {path}: {reason}{hint}"


# How people see the answers


def _pairs(result: dict[str, Any]) -> Iterable[str]:
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{each} {number}" for each, number in value.items() if number)
        elif isinstance(value, list):
            value = ", ".join(value)
        yield f"{name.replace('_', ' ')}: {value if value or value == 0 else 'none'}"


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Iterable[str]:
    cells = [[as_cell(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def as_cell(value: object) -> str:
    """What a client chose changes no terminal, and makes no cell of its own."""
    if value is None:
        return "-"
    text = str(value)
    return repr(text) if text == "-" or any(each in " '\"" for each in text) else printable(text)


def _show_status(result: dict[str, Any]) -> Iterable[str]:
    reloads = result.pop("reloads")
    uptime = datetime.timedelta(seconds=round(result["uptime"]))
    yield from _pairs(result | {"started": _moment(result["started"]), "uptime": str(uptime)})
    last = f", the last one at {_moment(reloads['last'])}" if reloads["last"] else ""
    yield f"reloads: {reloads['succeeded']}{last}; {reloads['failed']} failed"
    if reloads["error"]:
        yield f"why the last one failed: {printable(reloads['error'])}"


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _show_stats(result: dict[str, Any]) -> Iterable[str]:
    yield from _pairs({"steps": result["steps"]})
    yield from _table(result["plugins"], ("plugin", "hook", "calls", "holds", "continues", "completes", "retries", "failures"))


def _show_order(result: dict[str, Any]) -> Iterable[str]:
    yield from result["order"]
    yield from (f"{name} (paused)" for name in result["paused"])


def _show_held(result: dict[str, Any]) -> Iterable[str]:
    rows = result["oldest"]
    yield f"{result['held']} held" + (f", {len(rows)} shown, the oldest first" if rows else "")
    if rows:
        shown = [row | {"age": f"{row['age']:.1f}s"} for row in rows]
        yield from _table(shown, ("id", "plugin", "hook", "age", "peer", "envelope", "recipient"))


def _show_reload(result: dict[str, Any]) -> Iterable[str]:
    yield str(Reloaded(**result))


class _Command(NamedTuple):
    help: str
    show: Callable[[dict[str, Any]], Iterable[str]] = _pairs
    arguments: Mapping[str, dict[str, Any]] = MappingProxyType({})
    waits: str | None = None
    """What it says that it waits for, if that may take any time."""


_PLUGIN: dict[str, Any] = {"metavar": "PLUGIN", "help": "its name"}
_OF_PLUGIN: dict[str, Any] = {"metavar": "NAME", "help": "those that this plugin holds"}
_OLDER: dict[str, Any] = {"metavar": "TIME", "type": duration, "help": "those that are held for so long: 500ms, 10s, 5m"}
_COMMANDS = {
    "status": _Command("how it is", _show_status),
    "stats": _Command("the figures of each plugin", _show_stats),
    "order": _Command("the chain of a hook", _show_order, {"hook": {"metavar": "HOOK", "help": "such as mq_smtp_in_message"}}),
    "held": _Command(
        "what plugins hold, the oldest first",
        _show_held,
        {
            "--limit": {"metavar": "N", "type": count, "help": "at most so many (default: 100)"},
            "--plugin": _OF_PLUGIN,
            "--older": _OLDER,
        },
    ),
    "cancel": _Command(
        "end what a plugin holds: an SMTP client gets 451",
        arguments={
            "id": {"metavar": "ID", "nargs": "?", "help": "that of the message, as `held` has it"},
            "--plugin": _OF_PLUGIN,
            "--older": _OLDER,
        },
    ),
    "reload": _Command("read plugins, configuration and TLS certificates again", _show_reload),
    "drain": _Command(
        "take nothing more, and end when what is open is over",
        arguments={"--timeout": {"metavar": "TIME", "type": duration, "help": "break off what is open after: 90s, 5m"}},
    ),
    "stop": _Command("the same within 25 s, as SIGTERM does it"),
    "pause": _Command("leave a plugin out of what begins from now on", arguments={"plugin": _PLUGIN}),
    "resume": _Command("end what pause began", arguments={"plugin": _PLUGIN}),
    "trace": _Command(
        "what happens to the next transaction that matches: each step and plugin, and the replies",
        lines_of,
        {
            "id": {"metavar": "ID", "nargs": "?", "help": "of a connection, as `held` has it, or of a mail from a mailbox"},
            "--peer": {"metavar": "IP", "help": "of the client"},
        },
        "waiting for the transaction; Ctrl-C gives up",
    ),
}
