"""Likely mistakes in the source of plugins that load: warnings, each with what to do.

Nothing here runs a plugin's code. Where the source leaves open what happens, nothing is said.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ..hooks import MAILERQ_HOOKS
from ._blocking import blocking_calls, callbacks
from ._plugins import Plugin
from ._source import Hook, hooks_of, running, shown

HOLD_TIMEOUT = 30.0
"""In seconds: that of plugins whose config has none."""

_MAILERQ = frozenset(spec.name for spec in MAILERQ_HOOKS)
_GIVE_BACKS = ("continue_", "complete", "retry", "fail")
_TESTS = ("all", "any", "bool", "callable", "hasattr", "isinstance", "issubclass")
_TESTING_METHODS = ("endswith", "startswith")
_HOLDS = ("mqcore.HOLD", "mqcore.Verdict.HOLD")
_PASSING = ("CONTINUE", "COMPLETE", "RETRY", "Outcome.CONTINUE", "Outcome.COMPLETE", "Verdict.RETRY")
_PASSES = tuple(f"mqcore.{name}" for name in _PASSING)
_DECISIONS = ("discard", "reject", "skip_others")
_LOOKS = ("hash", "id", "isinstance", "len", "print", "repr", "str", "type", "vars", "dir")
_OTHER_NAMES = {
    "body": "mime, or headers",
    "content": "mime",
    "from_address": "envelope",
    "mail_from": "envelope",
    "mailfrom": "envelope",
    "raw": "mime",
    "rcpt_to": "recipient",
    "rcptto": "recipient",
    "sender": "envelope",
    "subject": 'headers.get("Subject")',
    "to": "recipient",
}


class Advice(NamedTuple):
    """A warning about one line of a plugin."""

    path: str
    line: int
    plugin: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: plugin {self.plugin}: warning: {self.text}"


def advice_for(plugin: Plugin, attributes: Collection[str], context_attributes: Collection[str]) -> list[Advice]:
    """All that is likely to be wrong with a plugin's hooks, by file and line.

    `attributes`: what messages of MailerQ's hooks have; `context_attributes`: what contexts have.
    """
    found = set()
    timeout = plugin.config.get("hold_timeout", HOLD_TIMEOUT)
    for hook in hooks_of(plugin.hooks, plugin.path):
        said = [*blocking_calls(hook), *_returns(hook), *_never_awaited(hook)]
        if hook.context is not None:
            said += _wrong_times(hook, timeout)
            said += _wrong_attributes(hook, hook.context, "context", context_attributes)
        if hook.message is not None and hook.name in _MAILERQ:
            said += _wrong_attributes(hook, hook.message, "message", attributes)
            said += _wrong_assignments(hook)
        found |= {Advice(hook.module.file, line, plugin.name, text) for line, text in said}
    return sorted(found)


# ------------------------------------------------------------------------------------------------------------ Returns


def _returns(hook: Hook) -> Iterator[tuple[int, str]]:
    returns = [node for node in running(hook.node) if isinstance(node, ast.Return) and node.value is not None]
    values = [value for node in returns if node.value is not None for value in _may_be(node.value)]
    for value in values:
        text = _wrong_value(hook, value)
        if text:
            yield value.lineno, f"{hook.name} returns {text}"
    if hook.message is None or hook.is_coroutine:
        return
    holding = [value for value in values if _holds(hook, value)]
    if holding and not _escapes(hook):
        yield holding[0].lineno, (
            f"{hook.name} returns {shown(holding[0])}, which holds the message, but hands it to nothing that could give it "
            "back, so that it fails when its hold_timeout is over; return False to let it go on, or start something, such as "
            "context.start_timer(1.0, context.continue_, message)"
        )
    taken = [] if any(_may_hold(hook, value) for value in values) else list(_taken(hook))
    if taken:
        yield taken[0].lineno, (
            f"{hook.name} calls {shown(taken[0])}, but never returns HOLD, so that the message has gone on by then (NotHeld); "
            "return mqcore.HOLD after it, or the Hold"
        )


def _may_be(value: ast.expr) -> Iterator[ast.expr]:
    """What an expression may be, if it is true."""
    match value:
        case ast.IfExp():
            yield from _may_be(value.body)
            yield from _may_be(value.orelse)
        case ast.BoolOp(op=ast.Or()):
            for each in value.values:
                yield from _may_be(each)
        case ast.BoolOp():
            yield from _may_be(value.values[-1])
        case ast.NamedExpr():
            yield from _may_be(value.value)
        case _:
            yield value


def _wrong_value(hook: Hook, value: ast.expr) -> str | None:
    match value:
        case ast.Compare() | ast.UnaryOp(op=ast.Not()):
            is_test = True
        case ast.Call(func=ast.Name(id=name)):
            is_test = name in _TESTS and name not in hook.module.helpers
        case ast.Call(func=ast.Attribute(attr=name)):
            is_test = name in _TESTING_METHODS
        case _:
            is_test = False
    if is_test:
        return (
            f"{shown(value)}, and where that is True the plugin holds the message, until its hold_timeout is over and it "
            "fails; say what is meant, as `return mqcore.COMPLETE if ... else None`"
        )
    if hook.module.name_of(value) in ("mqcore.FAIL", "mqcore.Outcome.FAIL"):
        return "FAIL, which is no verdict; raise an exception, or call context.fail(message, error) and return HOLD"
    is_other = isinstance(value, (ast.Tuple, ast.List, ast.Dict, ast.Set, ast.JoinedStr))
    if isinstance(value, ast.Constant) and value.value not in (None, ...):
        is_other = not isinstance(value.value, bool)
    if is_other:
        hint = "; to refuse the mail, call message.reject(550, text) and return None" if _is_reply(value) else ""
        return f"{shown(value)}, which is no verdict: a hook returns False, None, CONTINUE, COMPLETE, RETRY or HOLD{hint}"
    return None


def _is_reply(value: ast.expr) -> bool:
    first = value.elts[0] if isinstance(value, ast.Tuple) and value.elts else value
    return isinstance(first, ast.Constant) and str(first.value).startswith(("4", "5"))


def _holds(hook: Hook, value: ast.expr) -> bool:
    return (isinstance(value, ast.Constant) and value.value is True) or hook.module.name_of(value) in _HOLDS


def _may_hold(hook: Hook, value: ast.expr) -> bool:
    if isinstance(value, ast.Constant):
        return value.value is True
    return hook.module.name_of(value) not in _PASSES


def _escapes(hook: Hook) -> bool:
    """Whether the hook gives the message to anybody who might give it back."""
    parents = {inner: node for node in ast.walk(hook.node) for inner in ast.iter_child_nodes(node)}
    for node in ast.walk(hook.node):
        if isinstance(node, ast.Name) and node.id == "locals":
            return True
        if isinstance(node, ast.Name) and node.id == hook.message:
            match parent := parents[node]:
                case ast.Attribute(attr=attribute):
                    call = parents[parent]
                    is_called = isinstance(call, ast.Call) and call.func is parent
                    if attribute == "payload" or (is_called and attribute not in _DECISIONS):
                        return True
                case ast.FormattedValue() | ast.Compare():
                    pass
                case ast.Call(func=function) if (hook.module.name_of(function) or "").startswith(f"{hook.context}.log."):
                    pass
                case ast.Call(func=ast.Name(id=name)) if name in _LOOKS:
                    pass
                case _:
                    return True
    return False


def _taken(hook: Hook) -> Iterator[ast.Call]:
    """Calls that are of use only for who holds the message."""
    for node in running(hook.node):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attribute)) if name == hook.context:
                if attribute == "hold" or _gives_back(hook, node):
                    yield node


def _gives_back(hook: Hook, call: ast.Call) -> bool:
    """Whether this starts a timer that gives the message back at once."""
    return any(
        isinstance(callback, ast.Attribute)
        and isinstance(callback.value, ast.Name)
        and callback.value.id == hook.context
        and callback.attr in _GIVE_BACKS
        for callback in callbacks(call)
    )


# ---------------------------------------------------------------------------------------------------------- Other rules


def _never_awaited(hook: Hook) -> Iterator[tuple[int, str]]:
    """Coroutines that nothing runs."""
    for node in running(hook.node):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            helper = hook.module.helper(node.value.func, hook.node)
            if isinstance(helper, ast.AsyncFunctionDef) and not helper.decorator_list:
                yield node.lineno, f"{hook.name} calls {helper.name}, a coroutine function, without `await`: it never runs"
        for callback in callbacks(node) if isinstance(node, ast.Call) else ():
            helper = hook.module.helper(callback, hook.node)
            if isinstance(helper, ast.AsyncFunctionDef) and not helper.decorator_list:
                yield callback.lineno, (
                    f"{helper.name} is a coroutine function, and timers and watchers call plain ones: it would never run; "
                    f"define it without async, or make {hook.name} async and await it there"
                )


def _wrong_times(hook: Hook, timeout: float) -> Iterator[tuple[int, str]]:
    for node in running(hook.node):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            seconds, is_sleep = node.args[0].value, hook.is_coroutine and hook.module.name_of(node.func) == "asyncio.sleep"
            if isinstance(seconds, (int, float)) and 0 < timeout < seconds and (is_sleep or _gives_back(hook, node)):
                yield node.lineno, (
                    f"{shown(node.func)} takes seconds, here {seconds:g}, and the message fails after a hold_timeout of "
                    f"{timeout:g}; give fewer, or set hold_timeout in the plugin's config"
                )
            elif isinstance(seconds, (str, bytes)) and callbacks(node):
                yield node.lineno, f"{shown(node.func)} takes seconds, a number, and not {shown(node.args[0])}"


def _wrong_attributes(hook: Hook, name: str, what: str, attributes: Collection[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(hook.node):
        match node:
            case ast.Attribute(value=ast.Name(id=used), attr=attribute) if used == name and attribute not in attributes:
                close = _OTHER_NAMES.get(attribute) if what == "message" else None
                close = close or next(iter(difflib.get_close_matches(attribute, attributes, 1)), None)
                hint = f"did you mean {close}?" if close else f"what a plugin wants to remember goes into {name}.data"
                yield node.lineno, f"{hook.name} uses {name}.{attribute}, which is no attribute of a {what}; {hint}"


def _wrong_assignments(hook: Hook) -> Iterator[tuple[int, str]]:
    for node in ast.walk(hook.node):
        match node:
            case ast.Subscript(value=ast.Attribute(value=ast.Name(id=name), attr="headers")) if name == hook.message:
                if isinstance(node.ctx, ast.Store):
                    yield node.lineno, f"{shown(node)} cannot be set; use {name}.headers.replace(field, value), or add"
                elif isinstance(node.ctx, ast.Del):
                    yield node.lineno, f"{shown(node)} cannot be deleted; use {name}.headers.remove(field)"
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=name), attr=attribute)]) if name == hook.message:
                wrong = _wrong_assignment(attribute, node.value)
                if wrong:
                    yield node.lineno, f"{name}.{attribute} is {wrong}, and {hook.name} sets it to {shown(node.value)}"


def _wrong_assignment(attribute: str, value: ast.expr) -> str | None:
    """What the attribute has to be, if it cannot be this."""
    is_text = isinstance(value, (ast.JoinedStr, ast.Constant)) and isinstance(getattr(value, "value", ""), str)
    is_list = isinstance(value, (ast.List, ast.Tuple, ast.Dict, ast.Set))
    is_bytes = isinstance(value, ast.Constant) and isinstance(value.value, bytes)
    if attribute == "recipients" and (is_text or is_bytes):
        return "a list of addresses"
    if attribute in ("recipient", "envelope") and (is_list or is_bytes):
        return "one address, a str"
    if attribute == "mime" and (is_text or is_list):
        return "the mail as bytes"
    if attribute == "headers":
        return "edited by its own methods replace, add and remove"
    return None
