"""The source of a plugin's functions, for whoever looks for mistakes in it."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ._checks import place

FunctionNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


@dataclass
class Module:
    """A file: its functions by the line at which they begin, and what its imports are names of."""

    file: str
    functions: dict[int, FunctionNode] = field(default_factory=dict)
    helpers: dict[str, FunctionNode] = field(default_factory=dict)
    """Those of the file by name, and methods by `CLASS.NAME`."""
    classes: dict[FunctionNode, str] = field(default_factory=dict)
    """Methods' classes."""
    imports: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: str) -> Module | None:
        try:
            with open(file, "rb") as source:
                tree = ast.parse(source.read())
        except (OSError, SyntaxError, ValueError):  # it was compiled, so it has changed since; or it is no file at all
            return None
        module = cls(file)
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                module.functions[min(each.lineno for each in (node, *node.decorator_list))] = node
            elif isinstance(node, ast.Import):
                for name in node.names:
                    top = name.name.partition(".")[0]
                    module.imports[name.asname or top] = name.name if name.asname else top
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                module.imports |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
            elif isinstance(node, ast.ClassDef):
                for inner in _functions(node.body):
                    module.helpers[f"{node.name}.{inner.name}"] = inner
                    module.classes[inner] = node.name
        module.helpers |= {function.name: function for function in _functions(tree.body)}
        return module

    def name_of(self, node: ast.expr) -> str | None:
        """What an expression such as `sp.run` is the name of, as `subprocess.run`; None if it is no such name."""
        if isinstance(node, ast.Attribute):
            inner = self.name_of(node.value)
            return None if inner is None else f"{inner}.{node.attr}"
        return self.imports.get(node.id, node.id) if isinstance(node, ast.Name) else None

    def helper(self, node: ast.expr, caller: FunctionNode) -> FunctionNode | None:
        """The function of this file that an expression in `caller` names: `ask`, or `self.ask` of the same class."""
        if isinstance(node, ast.Name):
            inner = next((each for each in _functions(caller.body) if each.name == node.id), None)
            return inner or self.helpers.get(node.id)
        match node:
            case ast.Attribute(value=ast.Name(id=name)) if caller in self.classes and caller.args.args:
                return self.helpers.get(f"{self.classes[caller]}.{node.attr}") if name == caller.args.args[0].arg else None
        return None


def _functions(body: list[ast.stmt]) -> Iterator[FunctionNode]:
    return (node for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


@dataclass(frozen=True)
class Hook:
    """A hook's source."""

    name: str
    module: Module
    node: FunctionNode
    context: str | None
    message: str | None
    """What its parameters are called; None where that cannot be known."""

    @property
    def is_coroutine(self) -> bool:
        return isinstance(self.node, ast.AsyncFunctionDef)


def hooks_of(callables: Mapping[str, Any], path: str | None) -> Iterator[Hook]:
    """Those hooks whose source is at hand: functions and methods of the plugin's own files."""
    modules: dict[str, Module | None] = {}
    for name, value in callables.items():
        file, line = place(value, path)
        if file is None or line is None:
            continue
        if file not in modules:
            modules[file] = Module.read(file)
        module = modules[file]
        node = module.functions.get(line) if module else None
        if module is None or node is None:
            continue
        names: list[str | None] = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
        if inspect.ismethod(inspect.unwrap(value)):
            del names[:1]
        if len(names) < 2 or node.args.vararg or isinstance(value, functools.partial):
            names = [None, None]
        yield Hook(name, module, node, names[0], names[1])


def running(function: FunctionNode) -> Iterator[ast.AST]:
    """All that is in a function, but for what is only defined in it, and may be called elsewhere: in a thread, for one."""
    left: list[ast.AST] = list(reversed(function.body))
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, _NESTED):
            left.extend(reversed(list(ast.iter_child_nodes(node))))


def stores(function: FunctionNode, name: str) -> Iterator[ast.Name]:
    """Where it gives a variable a value, or takes it away."""
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load):
            yield node


def shown(node: ast.AST) -> str:
    """An expression, as in the source, shortened."""
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:57]}..."
