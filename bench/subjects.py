"""What is measured: plugins as an author writes them, on a dispatcher, and their functions for the peers to call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import mqcore

HOOK = "mq_smtp_in_message"

PASSES_ON = f"def {HOOK}(context, message):\n    return False\n"
PASSES_ON_WITH_NONE = f"def {HOOK}(context, message):\n    return None\n"
PASSES_ON_LATER = f"async def {HOOK}(context, message):\n    return False\n"
TAKES = f"def {HOOK}(context, message):\n    return True\n"


def functions_of(source: str, count: int) -> tuple[Callable[..., Any], ...]:
    """The hook functions of `count` plugins: each from a file of its own, so each with code of its own."""
    functions = []
    for number in range(count):
        namespace: dict[str, Any] = {}
        exec(compile(source, f"{number:04}-plugin.py", "exec"), namespace)
        functions.append(namespace[HOOK])
    return tuple(functions)


class Subject:
    """A dispatcher over plugins, and all that peers need to do the same work."""

    def __init__(self, loop: Any, functions: tuple[Callable[..., Any], ...], idle: int = 0, **options: Any) -> None:
        """`functions`: the hook of each plugin. `idle`: how many more plugins there are, which lack the hook."""
        contexts: list[mqcore.Context] = []
        self.plugins = mqcore.Plugins()
        for number, function in enumerate(functions):
            plugin = SimpleNamespace(**{HOOK: function, "mq_context_initialize": contexts.append})
            self.plugins.add(f"{number:04}-plugin", plugin)
        for number in range(idle):
            self.plugins.add(f"{number:04}-idle", SimpleNamespace(mq_smtp_out_sent=functions[0]))
        self.functions = functions
        self.dispatcher = mqcore.Dispatcher(self.plugins, loop, **options)
        self.contexts = tuple(contexts)
        self.pairs = tuple(zip(functions, contexts, strict=True))
        self.hook = self.dispatcher.hook(HOOK)


@contextmanager
def subject(loop: Any, source: str, count: int, idle: int = 0, **options: Any) -> Iterator[Subject]:
    """A Subject over `count` plugins of that source."""
    made = Subject(loop, functions_of(source, count), idle, **options)
    try:
        yield made
    finally:
        made.dispatcher.close()
        made.plugins.close()


def messages(count: int) -> list[mqcore.Message]:
    """That many new messages."""
    return [mqcore.Message() for _ in range(count)]
