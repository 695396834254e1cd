"""Plugin files: finding them, refusing those that anyone may change, importing them as `mqcore_plugins.NAME`."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
import threading
from collections import Counter
from glob import escape, glob
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from typing import TYPE_CHECKING

from ..errors import PluginError
from ._checks import raised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import CodeType, ModuleType

_PACKAGE = "mqcore_plugins"
_FOLDERS = "MQCORE_PLUGIN_FOLDERS"
"""In the environment: where processes that are started find the modules of plugins."""

_Modules = dict[str, "ModuleType"]

_live: dict[str, list[_Modules]] = {}
"""By the name of a plugin's module: that module and those in it, of each plugin of that name that has not ended. The last is
the one that is in `sys.modules`."""
_lock = threading.RLock()
_folders: Counter[str] = Counter()
"""In which plugins are, and how many that are loaded."""


def find(path: str, *, trust_writable: bool) -> Iterator[tuple[str, str]]:
    """The name and the path of each plugin at `path`: the file or package itself, or those in that directory."""
    if stat.S_ISDIR(_mode(path)) and not _is_package(path) and not path.endswith(".so"):
        if not trust_writable:
            _refuse_writable(path)
        try:
            entries = sorted(os.listdir(path))
        except OSError as error:
            raise unreadable(error, path) from error
        inside = [os.path.join(path, entry) for entry in entries if not entry.startswith((".", "_"))]
        plugins = [
            file
            for file in inside
            if _is_package(file) or file.endswith(".so") or (file.endswith(".py") and not os.path.isdir(file))
        ]
    else:
        plugins = [path]
    for plugin in plugins:
        name = os.path.basename(plugin)
        if not _is_package(plugin):
            name = name.removesuffix(".py").removesuffix(".so")
        try:
            _check(plugin, trust_writable)
        except PluginError as error:
            error.plugin = name
            raise
        yield name, plugin


def passed_over(path: str) -> list[str]:
    """What in a directory looks as if it were to be a plugin, and is none, and why."""
    reasons = []
    for entry in sorted(os.listdir(path)) if os.path.isdir(path) and not _is_package(path) else ():
        file = os.path.join(path, entry)
        if os.path.isdir(file) and not entry.startswith((".", "_")) and glob(os.path.join(escape(file), "*.py")):
            reasons.append(f"{entry} has no __init__.py")
        elif os.path.isfile(file) and entry.lower().endswith((".py", ".so")):
            reasons.append(f"{entry} {'begins with _' if entry.startswith('_') else 'does not end in .py or .so'}")
    return reasons


def _check(path: str, trust_writable: bool) -> None:
    file = os.path.join(path, "__init__.py") if _is_package(path) else path
    if not stat.S_ISREG(_mode(file)):
        raise PluginError("this is not a regular file; a plugin is a .py or .so file, or a package", path=file)
    if not file.endswith((".py", ".so")):
        raise PluginError("a plugin's file must end in .py or .so; rename it, or give another path", path=file)
    try:
        open(file, "rb").close()
    except OSError as error:
        raise unreadable(error, file) from error
    if trust_writable:
        return
    # Who may write to the directory may put another file in this one's place; a sticky directory prevents that.
    parent = os.path.dirname(os.path.realpath(path))
    if not _mode(parent) & stat.S_ISVTX:
        _refuse_writable(parent)
    _refuse_writable(path)
    for directory, directories, files in os.walk(path):
        for name in directories + files:
            inner = os.path.join(directory, name)
            if os.path.exists(inner):
                _refuse_writable(inner)


def _refuse_writable(path: str) -> None:
    mode = _mode(path)
    if mode & stat.S_IWOTH:
        raise PluginError(
            f"everyone may write to this {'directory' if stat.S_ISDIR(mode) else 'file'} (mode {mode & 0o7777:04o}), "
            "and so make the server run any code; take that right away (chmod o-w), or allow it with "
            "trust_writable=True (on the command line --trust-writable)",
            path=path,
        )


def _is_package(path: str) -> bool:
    return os.path.lexists(os.path.join(path, "__init__.py"))


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise unreadable(error, path) from error


def unreadable(error: OSError | ValueError, path: str) -> PluginError:
    """The error for a file or directory that the system does not let us read."""
    reason = error.strerror if isinstance(error, OSError) else error
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            return PluginError(f"this links to {os.readlink(path)}, which is missing; correct the link", path=path)
        return PluginError("there is no such file or directory; correct the path", path=path)
    return PluginError(f"this cannot be read: {reason}; correct the path, or its permissions", path=path)


class _Loader(SourceFileLoader):
    """Compiles the source as it is now: a bytecode cache would miss a change of equal size in the same second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        data = self.get_data(path)
        try:
            importlib.util.decode_source(data)
        except (SyntaxError, UnicodeDecodeError) as error:
            line = bad_line(data) or 1
            raise SyntaxError(f"{error}; save the file as UTF-8", (path, line, None, None)) from None
        if b"\0" in data:
            line = line_at(data, data.index(b"\0"))
            raise SyntaxError("there is a null byte; save the file as plain UTF-8 text", (path, line, None, None))
        code: CodeType = self.source_to_code(data, path)
        return code


class _Finder:
    """Finds the modules inside package plugins, and in a process that was started those of plugins, for the same loader."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is None or not name.startswith(_PACKAGE + "."):
            return None
        for directory in path:
            finder = FileFinder(directory, (ExtensionFileLoader, EXTENSION_SUFFIXES), (_Loader, SOURCE_SUFFIXES))
            spec = finder.find_spec(name)
            if spec is not None and spec.loader is not None:
                return spec
        return None


sys.meta_path.insert(0, _Finder)


def import_file(plugin: str, path: str, undo: Callable[..., object]) -> ModuleType:
    """Import a file or package as a new module, in `sys.modules` until `undo` calls what it is given here.

    Its name is that of the plugin, so that what is pickled finds it again. A reloaded plugin and its predecessor live side by
    side: the new one has the name, and loses it to the old one only if it ends first.
    """
    name = f"{_PACKAGE}.{plugin.replace('%', '%25').replace('.', '%2E')}"  # a dot would ask for a package
    package = _is_package(path)
    file = os.path.join(path, "__init__.py") if package else path
    loader = _Loader(name, file)
    spec = importlib.util.spec_from_file_location(
        name, file, loader=loader, submodule_search_locations=[path] if package else None
    )
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    undo(_forget, name, _remember(name, module, os.path.dirname(path)), os.path.dirname(path))
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise raised("importing it", error, plugin, path) from error
    return module


def _remember(name: str, module: ModuleType, folder: str) -> _Modules:
    """Give a new module the name. What stands for it in `_live`."""
    modules = {name: module}
    with _lock:
        generations = _live.setdefault(name, [])
        if generations:
            generations[-1].update(_take(name))
        generations.append(modules)
        _count_folder(folder, 1)
        sys.modules[name] = module
    return modules


def _forget(name: str, modules: _Modules, folder: str) -> None:
    with _lock:
        _count_folder(folder, -1)
        generations = _live[name]
        is_last = generations[-1] is modules
        generations[:] = [each for each in generations if each is not modules]
        if is_last:
            _take(name)
            sys.modules.update(generations[-1] if generations else {})
        if not generations:
            del _live[name]


def _take(name: str) -> _Modules:
    """A module, and those in it, out of `sys.modules`."""
    return {each: sys.modules.pop(each) for each in list(sys.modules) if each == name or each.startswith(name + ".")}


def _count_folder(folder: str, change: int) -> None:
    """Processes that are started from now on know the folders that plugins are in."""
    _folders[folder] += change
    known = [folder for folder, count in _folders.items() if count > 0 and os.pathsep not in folder]
    if known:
        os.environ[_FOLDERS] = os.pathsep.join(known)
    else:
        os.environ.pop(_FOLDERS, None)
    if _folders[folder] <= 0:
        del _folders[folder]
    if _PACKAGE in sys.modules:
        sys.modules[_PACKAGE].__path__ = folders()


def folders() -> list[str]:
    """Where this process, or the one that started it, has plugins from."""
    return [folder for folder in os.environ.get(_FOLDERS, "").split(os.pathsep) if folder]


def bad_line(data: bytes) -> int | None:
    """The line of the first byte that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return line_at(data, error.start)
    return None


def line_at(data: bytes, offset: int) -> int:
    """The line of the byte at `offset`."""
    return data.count(b"\n", 0, offset) + 1
