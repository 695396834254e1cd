"""Coroutines that nothing runs, and loops that are run inside a loop."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from ._blocking import callbacks, functions_of
from ._source import FunctionNode, Hook, Module, running, shown, stores

_OF_ASYNCIO = ("create_subprocess_exec", "create_subprocess_shell", "open_connection", "open_unix_connection", "sleep")
_COROUTINES = tuple(f"asyncio.{name}" for name in (*_OF_ASYNCIO, "start_server", "to_thread", "wait", "wait_for"))
_RUNNERS = ("asyncio.run", "asyncio.Runner")
_METHODS_THAT_RUN = ("run_forever", "run_until_complete")
_COLLECTING = ("all", "any", "max", "min", "sum")
_USING = (*_COLLECTING, "bool", "bytes", "dict", "float", "int", "len", "list", "set", "sorted", "str", "tuple")
_MEMBERS = ("close", "send", "throw")
_FREE = ("data", "json", "payload")
"""Attributes of a message that may keep anything."""

_Parents = Mapping[ast.AST, ast.AST]


def never_awaited(hook: Hook) -> Iterator[tuple[int, str]]:
    """Line and words for each coroutine that is used as what it would return, in the hook and in functions that it calls, and
    for each callback that is a coroutine function."""
    for function, who in functions_of(hook):
        parents = {inner: node for node in ast.walk(function) for inner in ast.iter_child_nodes(node)}
        for node in running(function):
            if not isinstance(node, ast.Call):
                continue
            name = _coroutine_function(hook.module, node, function)
            if name is not None and _is_used(hook, function, node, parents):
                how = "" if isinstance(function, ast.AsyncFunctionDef) else f", and make {function.name} async"
                yield node.lineno, (
                    f"{who} calls {name}, a coroutine function, without `await`: it never runs, and what is there instead of "
                    f"its result is true; write `await {shown(node)}`{how}"
                )
    for node in running(hook.node):
        for callback in callbacks(node) if isinstance(node, ast.Call) else ():
            helper = hook.module.helper(callback, hook.node)
            if helper is not None and _makes_coroutines(helper):
                yield callback.lineno, (
                    f"{helper.name} is a coroutine function, and timers and watchers call plain ones: it would never run; "
                    f"define it without async, or make {hook.name} async and await it there"
                )


def loops_in_a_loop(hook: Hook) -> Iterator[tuple[int, str]]:
    for function, who in functions_of(hook):
        for node in running(function):
            if isinstance(node, ast.Call):
                is_method = isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS_THAT_RUN
                if is_method or hook.module.name_of(node.func) in _RUNNERS:
                    yield node.lineno, (
                        f"{who} calls {shown(node.func)}, which raises RuntimeError, since hooks run inside a loop already; "
                        f"write `async def {function.name}`, and await there what is to run"
                    )


def _coroutine_function(module: Module, call: ast.Call, caller: FunctionNode) -> str | None:
    """Its name, if that is what is called."""
    arguments = caller.args
    names = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    if isinstance(call.func, ast.Name) and (call.func.id in names or any(stores(caller, call.func.id))):
        return None
    helper = module.helper(call.func, caller)
    if helper is not None:
        return helper.name if _makes_coroutines(helper) else None
    name = module.name_of(call.func)
    return name if name in _COROUTINES else None


def _makes_coroutines(function: FunctionNode) -> bool:
    is_generator = any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in running(function))
    return isinstance(function, ast.AsyncFunctionDef) and not function.decorator_list and not is_generator


def _is_used(hook: Hook, function: FunctionNode, value: ast.AST, parents: _Parents) -> bool:
    """Whether a coroutine is dropped, or taken for its result. Not where somebody else may yet await it."""
    parent = parents[value]
    match parent:
        case ast.Expr() | ast.UnaryOp() | ast.BinOp() | ast.AugAssign() | ast.FormattedValue() | ast.Compare():
            return True
        case ast.If() | ast.While() | ast.Assert() | ast.Match():
            return True
        case ast.BoolOp() if value is not parent.values[-1]:
            return True
        case ast.IfExp() if value is parent.test:
            return True
        case ast.BoolOp() | ast.IfExp():
            return _is_used(hook, function, parent, parents)
        case ast.For(iter=iterated):
            return value is iterated
        case ast.comprehension(iter=iterated, is_async=is_async):
            return value is not iterated or not is_async
        case ast.Attribute(attr=attribute):
            return attribute not in _MEMBERS and not attribute.startswith("cr_")
        case ast.Subscript(value=inner):
            return value is inner
        case ast.GeneratorExp() | ast.ListComp():
            return _takes(hook, parents[parent], _COLLECTING)
        case ast.Call():
            return _takes(hook, parent, _USING)
        case ast.Return():
            return function is hook.node and hook.is_coroutine
        case ast.NamedExpr(target=ast.Name(id=name)):
            return _is_used(hook, function, parent, parents) or _all_used(hook, function, name, parents)
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return _all_used(hook, function, name, parents)
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=name), attr=attribute)]):
            return name == hook.message and attribute not in _FREE
    return False


def _takes(hook: Hook, call: ast.AST, builtins: tuple[str, ...]) -> bool:
    """Whether this is called with a result for an argument, and with no coroutine."""
    if not isinstance(call, ast.Call):
        return False
    name = hook.module.name_of(call.func) or ""
    if name in builtins:
        return name not in hook.module.helpers
    return name.startswith((f"{hook.context}.log.", f"{hook.message}.headers.")) or name == f"{hook.message}.reject"


def _all_used(hook: Hook, function: FunctionNode, name: str, parents: _Parents) -> bool:
    """Whether a variable is only ever used as the result of what was called."""
    outer = any(isinstance(node, (ast.Global, ast.Nonlocal)) and name in node.names for node in ast.walk(function))
    loads = [node for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    if outer or len(list(stores(function, name))) > 1 or any(node.id == "locals" for node in loads):
        return False
    return all(_is_used(hook, function, node, parents) for node in loads if node.id == name)
