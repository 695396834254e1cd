"""Calls in hooks that keep the loop, and with it all other mails."""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Iterator

from ._source import FunctionNode, Hook, Module, running

_THREAD = "ask in a thread, as `await asyncio.to_thread(...)` in an async hook"
_PROCESS = "use `await asyncio.create_subprocess_exec(...)` in an async hook"
_NAMES = "use `await asyncio.get_running_loop().getaddrinfo(...)` in an async hook"
_HTTP = f"use a client for asyncio, such as httpx.AsyncClient, or {_THREAD}"

_DRIVERS = ("psycopg.connect", "psycopg2.connect", "pymysql.connect", "MySQLdb.connect")
_VERBS = ("delete", "get", "head", "options", "patch", "post", "put", "request")

_BY_MODULE = [
    ("http.client", ("HTTPConnection", "HTTPSConnection"), _HTTP),
    ("urllib.request", ("urlopen", "urlretrieve"), _HTTP),
    ("requests", (*_VERBS, "Session", "session"), _HTTP),
    ("httpx", _VERBS, _HTTP),
    ("smtplib", ("SMTP", "SMTP_SSL", "LMTP"), _THREAD),
    ("imaplib", ("IMAP4", "IMAP4_SSL"), _THREAD),
    ("ftplib", ("FTP", "FTP_TLS"), _THREAD),
    ("subprocess", ("run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"), _PROCESS),
    ("os", ("system", "popen", "wait", "waitpid"), _PROCESS),
    ("socket", ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo", "getfqdn"), _NAMES),
    ("dns.resolver", ("resolve", "query"), "use dns.asyncresolver in an async hook"),
]
_BLOCKING = {
    "time.sleep": "start a timer, as context.start_timer(seconds, context.continue_, message), and return HOLD; or, in an "
    "async hook, `await asyncio.sleep(seconds)`",
    "input": "a server has nobody to ask; take it from context.config",
    **dict.fromkeys(_DRIVERS, _THREAD),
    **{f"{module}.{name}": instead for module, names, instead in _BY_MODULE for name in names},
}


def blocking_calls(hook: Hook) -> Iterator[tuple[int, str]]:
    """Line and words for each."""
    for function, who in functions_of(hook):
        yield from _calls_in(hook.module, function, who)


def functions_of(hook: Hook) -> Iterator[tuple[FunctionNode, str]]:
    """The hook and, one level deep, functions of the same file that it calls, or that the loop calls for it; each with what it
    is called in advice."""
    yield hook.node, hook.name
    seen = {hook.node}
    for node in running(hook.node):
        if isinstance(node, ast.Call):
            for function in (node.func, *callbacks(node)):
                helper = hook.module.helper(function, hook.node)
                if helper is not None and helper not in seen:
                    seen.add(helper)
                    yield helper, f"{helper.name}, for {hook.name},"


def callbacks(call: ast.Call) -> list[ast.expr]:
    """What `start_timer` and `watch`, and asyncio's timers, are told to call, on the loop."""
    if isinstance(call.func, ast.Attribute):
        if call.func.attr in ("start_timer", "call_later", "call_at"):
            return call.args[1:2]
        if call.func.attr == "watch":
            return call.args[2:3]
    return []


def _calls_in(module: Module, function: FunctionNode, who: str) -> Iterator[tuple[int, str]]:
    awaited = {id(node.value) for node in running(function) if isinstance(node, ast.Await)}
    for node in running(function):
        if isinstance(node, ast.Call) and id(node) not in awaited:
            name, instead = _blocks(module, node)
            if instead is not None:
                yield node.lineno, f"{who} calls {name}, and while that waits no other mail moves; {instead}"


def _blocks(module: Module, call: ast.Call) -> tuple[str | None, str | None]:
    name = module.name_of(call.func)
    if name is None or name in module.helpers:
        return None, None
    has_timeout = len(call.args) > 1 or any(each.arg in ("timeout", None) for each in call.keywords)
    if name == "socket.create_connection" and not has_timeout:
        return f"{name} without a timeout", "use `await asyncio.open_connection(...)` in an async hook, or a watcher"
    if name in ("open", "os.open") and call.args and _is_fifo(call.args[0]):
        return f"{name} of a FIFO", "open it in mq_context_initialize, by os.open with O_NONBLOCK, and watch it"
    return name, _BLOCKING.get(name)


def _is_fifo(path: ast.expr) -> bool:
    if not isinstance(path, ast.Constant) or not isinstance(path.value, str):
        return False
    try:
        return stat.S_ISFIFO(os.stat(path.value).st_mode)
    except (OSError, ValueError):
        return False
