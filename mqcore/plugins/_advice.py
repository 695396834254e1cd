"""Likely mistakes in the source of plugins that load: warnings, each with what to do.

Nothing here runs a plugin's code. Where the source leaves open what happens, nothing is said.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from types import MappingProxyType
from typing import NamedTuple

from ..hooks import MAILERQ_HOOKS, close_to
from ._awaits import loops_in_a_loop, never_awaited
from ._blocking import blocking_calls, callbacks
from ._plugins import Plugin
from ._source import FunctionNode, Hook, Module, hooks_of, running, shown, stores

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
_HOLDS_IF_TRUE = (
    "and where that is True the plugin holds the message, until its hold_timeout is over and it fails; say what is meant, as "
    "`return mqcore.COMPLETE if ... else None`"
)
_MAPPING = dir(MappingProxyType)
_LOOKS = ("hash", "id", "isinstance", "len", "print", "repr", "str", "type", "vars", "dir")
_OTHER_NAMES = {
    "message": {
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
    },
    "connection": {
        "address": "peer",
        "ehlo": "helo",
        "host": "peer",
        "hostname": "helo",
        "ip": "peer",
        "login": "authenticated",
        "remote_addr": "peer",
        "ssl": "tls",
        "user": "authenticated",
    },
}


class Advice(NamedTuple):
    """A warning about one line of a plugin."""

    path: str
    line: int
    plugin: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: plugin {self.plugin}: warning: {self.text}"


def advice_for(
    plugin: Plugin, attributes: Collection[str], context_attributes: Collection[str], connection_attributes: Collection[str]
) -> list[Advice]:
    """All that is likely to be wrong with a plugin's hooks, by file and line.

    `attributes`: what messages of MailerQ's hooks have; `context_attributes`: what contexts have; `connection_attributes`: what
    `message.connection` has.
    """
    found = set()
    timeout = plugin.config.get("hold_timeout", HOLD_TIMEOUT)
    for hook in hooks_of(plugin.hooks, plugin.path):
        said = [*blocking_calls(hook), *_returns(hook), *never_awaited(hook), *loops_in_a_loop(hook), *_called_at_once(hook)]
        if hook.context is not None:
            said += _wrong_calls(hook)
            said += _wrong_times(hook, timeout)
            said += _wrong_attributes(hook, hook.context, "context", context_attributes)
        if hook.message is not None and hook.name in _MAILERQ:
            said += _wrong_attributes(hook, hook.message, "message", attributes)
            said += _wrong_attributes(hook, f"{hook.message}.connection", "connection", connection_attributes)
            said += _wrong_assignments(hook)
        found |= {Advice(hook.module.file, line, plugin.name, text) for line, text in said}
    return sorted(found)


# ------------------------------------------------------------------------------------------------------------ Returns


def _returns(hook: Hook) -> Iterator[tuple[int, str]]:
    returns = [node for node in running(hook.node) if isinstance(node, ast.Return) and node.value is not None]
    values = [value for node in returns if node.value is not None for value in _may_be(node.value)]
    for value in values:
        text = _wrong_value(hook, value) or _wrong_result(hook, value)
        if text:
            yield value.lineno, f"{hook.name} returns {text}"
    if hook.message is None:
        return
    holding = [value for value in values if _holds(hook, value)]
    if holding and not _escapes(hook):
        yield holding[0].lineno, (
            f"{hook.name} returns {shown(holding[0])}, which holds the message, but hands it to nothing that could give it "
            "back, so that it fails when its hold_timeout is over; return False to let it go on, or start something, such as "
            "context.start_timer(1.0, context.continue_, message)"
        )
    # While a coroutine runs, the message may be given back: what waits may do so until that has come.
    waits = any(isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)) for node in running(hook.node))
    taken = [] if waits or any(_may_hold(hook, value) for value in values) else list(_taken(hook))
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
    if _is_test(hook, value):
        return f"{shown(value)}, {_HOLDS_IF_TRUE}"
    if hook.module.name_of(value) in ("mqcore.FAIL", "mqcore.Outcome.FAIL"):
        return "FAIL, which is no verdict; raise an exception, or call context.fail(message, error) and return HOLD"
    is_other = isinstance(value, (ast.Tuple, ast.List, ast.Dict, ast.Set, ast.JoinedStr))
    if isinstance(value, ast.Constant) and value.value not in (None, ...):
        is_other = not isinstance(value.value, bool)
    if is_other:
        hint = "; to refuse the mail, call message.reject(550, text) and return None" if _is_reply(value) else ""
        return f"{shown(value)}, which is no verdict: a hook returns False, None, CONTINUE, COMPLETE, RETRY or HOLD{hint}"
    return None


def _is_test(hook: Hook, value: ast.expr) -> bool:
    """Whether it is True or False, as it stands."""
    match value:
        case ast.Compare() | ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name in _TESTS and name not in hook.module.helpers
        case ast.Call(func=ast.Attribute(attr=name)):
            return name in _TESTING_METHODS
    return False


def _wrong_result(hook: Hook, value: ast.expr) -> str | None:
    """The same for a variable, and for a call of a function of this file, that is True or False in the end: wrong where nothing
    could give the message back."""
    match value:
        case ast.Name(id=name):
            given = _values_of(hook.node, name)
        case ast.Call(func=function) | ast.Await(value=ast.Call(func=function)):
            helper = hook.module.helper(function, hook.node)
            if helper is None or helper.decorator_list:
                return None
            given = [node.value for node in running(helper) if isinstance(node, ast.Return) and node.value is not None]
        case _:
            return None
    given = [each for one in given for each in _may_be(one)]
    constants = [each for each in given if isinstance(each, ast.Constant) and each.value in (True, False, None)]
    may_be_true = [each for each in given if not isinstance(each, ast.Constant) or each.value is True]
    if not may_be_true or not all(each in constants or _is_test(hook, each) for each in given) or _escapes(hook):
        return None
    return f"{shown(value)}, which is True or False, {_HOLDS_IF_TRUE}"


def _values_of(function: FunctionNode, name: str) -> list[ast.expr]:
    """All that a variable is set to; nothing if it may be anything else."""
    values = []
    for node in running(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=set_name)]) | ast.NamedExpr(target=ast.Name(id=set_name)):
                values += [node.value] if set_name == name else []
            case ast.AnnAssign(target=ast.Name(id=set_name), value=ast.expr() as given):
                values += [given] if set_name == name else []
    return values if len(values) == len(list(stores(function, name))) else []


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
                case ast.Call() if (inner := _called(hook, parent, node)) and not _escapes(inner):
                    pass
                case _:
                    return True
    return False


def _called(hook: Hook, call: ast.Call, message: ast.expr) -> Hook | None:
    """The function of this file that is called with the message, as if it were the hook, in order to look at it; None where
    that cannot be known, and for one that calls others with it in turn."""
    helper = hook.module.helper(call.func, hook.node)
    is_plain = message in call.args and not any(isinstance(each, ast.Starred) for each in call.args)
    if helper is None or helper.decorator_list or helper is hook.node or not is_plain:
        return None
    names = [each.arg for each in (*helper.args.posonlyargs, *helper.args.args)]
    names = names[1:] if isinstance(call.func, ast.Attribute) else names
    place = call.args.index(message)
    if place >= len(names):
        return None
    return Hook(helper.name, Module(hook.module.file, imports=hook.module.imports), helper, None, names[place])


def _taken(hook: Hook) -> Iterator[ast.Call]:
    """Calls that are of use only for who holds the message."""
    for node in running(hook.node):
        if isinstance(node, ast.Call) and (_is_hold(hook, node) or _gives_back(hook, node)):
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


def _called_at_once(hook: Hook) -> Iterator[tuple[int, str]]:
    """Functions that are called where they were to be handed over."""
    for node in running(hook.node):
        for callback in callbacks(node) if isinstance(node, ast.Call) else ():
            if isinstance(callback, ast.Call) and _returns_nothing(hook, callback.func):
                meant = ", ".join(map(ast.unparse, (callback.func, *callback.args, *callback.keywords)))
                meant = f"functools.partial({meant})" if callback.keywords else meant
                yield callback.lineno, (
                    f"{hook.name} calls {shown(callback)} at once, and not when its time has come, and hands over what that "
                    f"returns, which cannot be called; hand over the function and after it its arguments: {meant}"
                )


def _returns_nothing(hook: Hook, function: ast.expr) -> bool:
    """Whether this is a function that is there for what it does: a give-back, a method of the log, or one of this file."""
    helper = hook.module.helper(function, hook.node)
    if helper is not None:
        nodes = list(running(helper))
        is_generator = any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in nodes)
        has_value = any(isinstance(node, ast.Return) and node.value is not None for node in nodes)
        return not (helper.decorator_list or is_generator or has_value)
    match function:
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if attribute in _GIVE_BACKS:
            return name == hook.context or any(_is_hold(hook, value) for value in _values_of(hook.node, name))
    return (hook.module.name_of(function) or "").startswith(f"{hook.context}.log.")


def _is_hold(hook: Hook, value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and hook.module.name_of(value.func) == f"{hook.context}.hold"


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
            case ast.Attribute(attr=attribute) if attribute not in attributes and ast.unparse(node.value) == name:
                close = _OTHER_NAMES.get(what, {}).get(attribute) or _of_another(hook, what, attribute)
                close = close or close_to(attribute, attributes)
                hint = f"did you mean {close}?" if close else f"what a plugin wants to remember goes into {name}.data"
                yield node.lineno, f"{hook.name} uses {name}.{attribute}, which is no attribute of a {what}; {hint}"


def _of_another(hook: Hook, what: str, attribute: str) -> str | None:
    """The same, where it is not the message that has it, but the context; and the other way round."""
    if what == "message" and attribute in (*_GIVE_BACKS, "continue1", "cont", "hold"):
        name = attribute if attribute in (*_GIVE_BACKS, "hold") else "continue_"
        return f"{hook.context or 'context'}.{name}({hook.message}{', error' if name == 'fail' else ''})"
    if what == "context" and attribute in (*_DECISIONS, "headers", "envelope", "recipient", "recipients", "mime", "connection"):
        return f"{hook.message or 'message'}.{attribute}"
    return None


def _wrong_calls(hook: Hook) -> Iterator[tuple[int, str]]:
    """What is called and no function, awaited and no coroutine; and a config that is used as if it were no mapping."""
    config = f"{hook.context}.config"
    for node in ast.walk(hook.node):
        match node:
            case ast.Call(func=function):
                name = hook.module.name_of(function)
                if name == f"{hook.context}.log":
                    yield node.lineno, f"{shown(node)} calls a logger, which is none; write {name}.info(...), or warning"
                elif name == config:
                    yield node.lineno, f"{shown(node)} calls a mapping; write {config}[key], or {config}.get(key, default)"
                elif name in (*_HOLDS, *_PASSES):
                    yield node.lineno, f"{shown(node)} calls a constant; write {shown(function)}"
            case ast.Await(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attribute) as function)):
                if name == hook.context and attribute in (*_GIVE_BACKS, "hold", "start_timer", "watch"):
                    text = f"{shown(function)} is no coroutine function, and returns at once; leave out await"
                    yield node.lineno, f"{shown(node)}: {text}"
            case ast.Attribute(attr=attribute) if hook.module.name_of(node.value) == config and attribute not in _MAPPING:
                yield node.lineno, f'{shown(node)}: the config is a mapping; write {config}["{attribute}"], or {config}.get'
            case ast.Subscript(ctx=ast.Store() | ast.Del()) if hook.module.name_of(node.value) == config:
                yield node.lineno, f"{shown(node)} cannot be set; what a plugin wants to remember goes into {hook.context}.data"


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
