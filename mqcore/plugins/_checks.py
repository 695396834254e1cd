"""What a plugin's object offers, checked before anything of it runs, and where in its files an error is."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import traceback
from types import FunctionType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..errors import PluginError
from ..hooks import LIFECYCLE, HookSpec, MissingSetting, misspelt, nearly, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def check(obj: object, plugin: str, path: str | None, hooks: Mapping[str, HookSpec]) -> dict[str, Any]:
    """The hooks and lifecycle functions of `obj`, by name; all are callable as mqcore will call them."""
    arguments = {name: ("context", "message", *spec.args) for name, spec in hooks.items()} | dict(LIFECYCLE)
    try:
        names = dir(obj)
        callables = {name: getattr(obj, name) for name in names if name.startswith("mq_") or name in hooks}
    except (Exception, SystemExit) as error:
        raise raised("looking at its attributes", error, plugin, path) from error

    for name, value in callables.items():
        wrong = _wrong(name, value, arguments)
        if wrong:
            if isinstance(obj, type) and name in arguments:
                wrong += " (this plugin is a class: did you mean an instance of it?)"
            file, line = place(value, path)
            raise PluginError(wrong, plugin=plugin, path=file, line=line)

    missing = [name for name in hooks if name not in callables]
    for name in names:
        wrong = None if name in callables else misspelt(name, missing)
        function = _own_function(obj, name) if wrong else None
        if wrong and function is not None:
            file, line = place(function, path)
            raise PluginError(wrong, plugin=plugin, path=file, line=line)
    return callables


def refuse_what_has_no_hooks(obj: object) -> None:
    """Raise TypeError for what an object with hooks is most often mistaken for."""
    if obj is None or isinstance(obj, (str, bytes, os.PathLike, FunctionType)):
        instead = "a path is for Plugins(path) or load(path)"
        if isinstance(obj, FunctionType):
            instead = f"to add a function, make it one, as types.SimpleNamespace({obj.__name__}=...)"
        raise TypeError(f"a plugin is an object with hooks for attributes, not {obj!r}; {instead}")


def nearly_hooks(obj: object, callables: Mapping[str, Any], hooks: Iterable[str]) -> list[tuple[str, int | None, str]]:
    """Functions of the plugin that are named nearly as a hook that it has not: name, line, and that hook."""
    missing = [hook for hook in hooks if hook not in callables]
    found = []
    for name in dir(obj):
        hook = None if name in callables else nearly(name, missing)
        function = _own_function(obj, name) if hook else None
        if hook and function is not None:
            found.append((name, place(function, None)[1], hook))
    return found


def no_hook(obj: object, hooks: Iterable[str]) -> str:
    """Why a file has no hook, as far as that can be seen, and what to do."""
    if not isinstance(obj, ModuleType):
        return ""
    for name, value in vars(obj).items():
        is_own_class = isinstance(value, type) and value.__module__ == obj.__name__
        hook = next((hook for hook in hooks if hook in vars(value)), None) if is_own_class else None
        if hook:
            return (
                f"{hook} is in the class {name}, and a file's hooks are its functions; write it outside of the class, or "
                f"{hook} = {name}().{hook} behind it"
            )
        if name.startswith("on_") and "mq_smtp_in_message" in hooks and _own_function(obj, name):
            return (
                f"if {name} is a hook of a server of your own, say so by Plugins(hooks=[...]), or on the command line by "
                "--hooks MODULE:NAME"
            )
    return "if it is no plugin, begin its name with _"


def _own_function(obj: object, name: str) -> Any:
    """The function of that name, if the plugin itself defines it.

    It does not if it imports or inherits it from elsewhere: then the name is somebody else's. Nor is a class a hook whose
    name is wrong.
    """
    with contextlib.suppress(Exception, SystemExit):  # anything may hide behind an attribute
        value = inspect.getattr_static(obj, name)
        value = _innermost(getattr(value, "__func__", value))
        if not callable(value) or isinstance(value, type):
            return None
        if type(obj) is SimpleNamespace:
            return value  # whoever made it chose all that is in it
        if isinstance(obj, ModuleType):
            home = obj.__name__
            own = value.__module__ == home or value.__module__.startswith(home + ".")
        else:
            own = value.__module__ == (obj if isinstance(obj, type) else type(obj)).__module__
        return value if own else None
    return None


def _wrong(name: str, value: object, arguments: Mapping[str, tuple[str, ...]]) -> str | None:
    """What is wrong with an attribute that has the name of a hook, or a name that begins with mq_, and how to mend it."""
    if name not in arguments:
        return unknown(name, arguments)
    call = f"{name}({', '.join(arguments[name])})"
    if not callable(value):
        if name == "mq_version":
            return None
        other = "" if name.startswith("mq_") else ", or give it another name, since this is a hook's"
        return f"{name} is of type {type(value).__name__}, which cannot be called; define it as a function, {call}{other}"
    if _is(inspect.isgeneratorfunction, value) or _is(inspect.isasyncgenfunction, value):
        return f"{name} is a generator, which nothing would run; return a verdict instead of yielding"
    if name in LIFECYCLE and is_coroutine_function(value):
        return f"{name} is a coroutine function, and only hooks may be that; define it without async"
    try:
        # What a decorator wraps does not matter: it is the wrapper that is called.
        signature = inspect.signature(value, follow_wrapped=False)
    except Exception:
        return None  # as with many builtins; only the call itself can tell
    try:
        signature.bind(*arguments[name])
    except TypeError as error:
        return f"{name} cannot take its arguments: {error}; define it as {call}"
    return None


def is_coroutine_function(value: Callable[..., object]) -> bool:
    return _is(inspect.iscoroutinefunction, value)


def _is(kind: Callable[[object], bool], value: Callable[..., object]) -> bool:
    value = _innermost(value)
    return kind(value) or kind(type(value).__call__)


def _innermost(value: Any) -> Any:
    """What is called in the end, behind partials."""
    while isinstance(value, functools.partial):
        value = value.func
    return value


def place(value: Any, path: str | None) -> tuple[str | None, int | None]:
    """Where a callable is defined, if that is in the files of the plugin at `path`, or if the plugin has no files."""
    with contextlib.suppress(Exception):  # anything may hide behind an attribute
        value = inspect.unwrap(_innermost(value))
        code = getattr(value, "__code__", None) or type(value).__call__.__code__
        if path is None or is_inside(code.co_filename, path):
            return code.co_filename, code.co_firstlineno
    return path, None


def raised(doing: str, error: BaseException, plugin: str, path: str | None) -> PluginError:
    """The error for a plugin's code that raised, placed at the deepest line that is in the plugin's own files."""
    if isinstance(error, SyntaxError) and error.filename and is_inside(error.filename, path):
        called = re.search(r"\b(\w+)\.continue\s*\(", error.text or "")
        hint = f"; `continue` is a word of Python's own, so the method is {called[1]}.continue_" if called else ""
        return PluginError(f"syntax error: {error.msg}{hint}", plugin=plugin, path=error.filename, line=error.lineno)
    file, line = path, None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if is_inside(frame.f_code.co_filename, path):
            file, line = frame.f_code.co_filename, number
    if isinstance(error, SystemExit):
        what = f"{doing} called sys.exit({error.code!r}); a plugin that cannot work raises an error that says why"
    else:
        what = f"{doing} raised {_said(error)}{'' if isinstance(error, MissingSetting) else f'; {_hint(error, path)}'}"
    return PluginError(what, plugin=plugin, path=file, line=line)


def _said(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be read)"
    name = KeyError.__name__ if isinstance(error, MissingSetting) else type(error).__name__
    return f"{name}: {text}" if text else name


def _hint(error: BaseException, path: str | None) -> str:
    """What to do about an error of the code of the plugin at `path`."""
    name = getattr(error, "name", None)
    if type(error) is ModuleNotFoundError and type(name) is str and path is not None and path.endswith(".py"):
        folder = os.path.dirname(path)
        if os.path.exists(os.path.join(folder, f"{name}.py")):
            return (
                f"{name}.py is beside it, but its folder is not on sys.path: make both a package, a folder with __init__.py, "
                f"and write `from . import {name}`, or install what several plugins share"
            )
    if type(error) is ModuleNotFoundError and type(name) is str and path is not None and not path.endswith(".py"):
        inner = os.path.join(path, name.rpartition(".")[2])
        if os.path.exists(f"{inner}.pyx"):
            return f"{inner}.pyx is not built yet: run `python setup.py build_ext --inplace` where its setup.py is"
    return "correct that, or take the plugin away"


def is_inside(file: str, path: str | None) -> bool:
    """Whether `file` is the plugin at `path`, or belongs to it."""
    return path is not None and (file == path or file.startswith(path + os.sep))
