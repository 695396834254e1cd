"""What the tests of native plugins share: plugins written in C, compiled by `cc`."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mqcore

STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fvisibility=hidden", "-O1", "-g")
VERSION = "MQ_EXPORT int mq_version(void) { return MQ_API_VERSION; }\n"

_built = Path(tempfile.mkdtemp(prefix="mqcore-tests-"))
atexit.register(shutil.rmtree, _built, ignore_errors=True)


def compile_plugin(target: Path, source: str, *options: str) -> Path:
    """The C source of a plugin as a shared object at `target`. What was compiled before is only copied."""
    sanitize = os.environ.get("MQCORE_SANITIZE", "0")
    if sanitize == "thread":
        options = (*options, "-fsanitize=thread")
    elif sanitize not in ("", "0"):
        options = (*options, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    source = f"#include <mqcore.h>\n#include <stdint.h>\n{VERSION if 'mq_version' not in source else ''}{source}"
    digest = hashlib.sha256("\0".join((source, *options)).encode()).hexdigest()[:24]
    built = _built / f"{digest}.so"
    if not built.exists():
        file = _built / f"{digest}.c"
        file.write_text(source)
        command = ("cc", *STRICT, "-shared", "-fPIC", "-I", mqcore.get_include(), str(file), "-o", str(built), *options)
        subprocess.run(command, check=True, timeout=60)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # never write into a file that may be loaded
    shutil.copy(built, target)
    return target


# A plugin whose functions are Python's: the test decides what it does, and calls the functions of mqcore.h as it would.
# (Real plugins never call Python. Here it is fine: ctypes takes the GIL.)
PUPPET = """
typedef bool (*hook)(MQ_Context *, MQ_Connection *, MQ_Message *);
typedef void (*context_function)(MQ_Context *);
static hook step;
static context_function begin, end;

MQ_EXPORT void pull(hook new_step, context_function new_begin, context_function new_end)
{
    step = new_step;
    begin = new_begin;
    end = new_end;
}

MQ_EXPORT void mq_context_initialize(MQ_Context *context) { if (begin) begin(context); }
MQ_EXPORT void mq_context_cleanup(MQ_Context *context) { if (end) end(context); }
MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    return step && step(context, connection, message);
}
"""

HANDLE, SIZE, TEXT = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_char_p
HOOK = ctypes.CFUNCTYPE(ctypes.c_bool, HANDLE, HANDLE, HANDLE)
CONTEXT_FUNCTION = ctypes.CFUNCTYPE(None, HANDLE)
TIMER_CALLBACK = ctypes.CFUNCTYPE(None, HANDLE)
WATCH_CALLBACK = ctypes.CFUNCTYPE(None, HANDLE, ctypes.c_int, ctypes.c_int, HANDLE)

SIGNATURES = {
    "MQ_continue": (None, HANDLE),
    "MQ_complete": (None, HANDLE),
    "MQ_retry": (None, HANDLE),
    "MQ_fail": (None, HANDLE, TEXT),
    "MQ_config": (TEXT, HANDLE, TEXT),
    "MQ_helo": (TEXT, HANDLE),
    "MQ_peer": (TEXT, HANDLE),
    "MQ_reject": (None, HANDLE, ctypes.c_int, TEXT),
    "MQ_contextData": (HANDLE, HANDLE),
    "MQ_setContextData": (None, HANDLE, HANDLE),
    "MQ_startTimer": (HANDLE, HANDLE, ctypes.c_float, TIMER_CALLBACK, HANDLE),
    "MQ_resetTimer": (None, HANDLE, ctypes.c_float),
    "MQ_stopTimer": (None, HANDLE),
    "MQ_ioWatch": (HANDLE, HANDLE, ctypes.c_int, ctypes.c_int, WATCH_CALLBACK, HANDLE),
    "MQ_ioUnwatch": (None, HANDLE),
    "MQ_uv": (HANDLE, HANDLE),
    "MQ_uvSymbol": (HANDLE, HANDLE, TEXT),
    "MQ_connectionData": (HANDLE, HANDLE),
    "MQ_setConnectionData": (None, HANDLE, HANDLE),
    "MQ_fileDescriptor": (ctypes.c_int, HANDLE),
    "MQ_send": (SIZE, HANDLE, TEXT, SIZE),
    "MQ_secure": (ctypes.c_bool, HANDLE),
    "MQ_authenticated": (ctypes.c_bool, HANDLE),
    "MQ_setAuthenticated": (None, HANDLE, ctypes.c_bool),
    "MQ_envelope": (HANDLE, HANDLE),
    "MQ_setEnvelope": (None, HANDLE, TEXT, SIZE),
    "MQ_recipient": (HANDLE, HANDLE),
    "MQ_setRecipient": (None, HANDLE, TEXT, SIZE),
    "MQ_email": (TEXT, HANDLE),
    "MQ_mime": (TEXT, HANDLE),
    "MQ_mimeSize": (SIZE, HANDLE),
    "MQ_setMime": (None, HANDLE, TEXT, SIZE),
    "MQ_header": (TEXT, HANDLE, TEXT),
    "MQ_addHeader": (None, HANDLE, TEXT, TEXT),
    "MQ_local": (ctypes.c_bool, HANDLE),
    "MQ_setLocal": (None, HANDLE, ctypes.c_bool),
    "MQ_json": (TEXT, HANDLE),
    "MQ_setJson": (None, HANDLE, TEXT, SIZE),
    "MQ_log": (None, ctypes.c_int, TEXT),
}


def _functions() -> SimpleNamespace:
    """The functions of mqcore.h, which are called without the GIL, as a thread of a plugin calls them."""
    import mqcore.native._abi

    library = ctypes.CDLL(mqcore.native._abi.__file__)
    functions = SimpleNamespace()
    for name, (returned, *arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype = returned
        function.argtypes = arguments
        setattr(functions, name, function)
    return functions


mq = _functions()


_called_by_c: list[Any] = []  # as long as the process lives: so long C code may call these


class Puppet:
    """A native plugin with the hook mq_step whose functions are `step`, `begin` and `end`, which may be set any time.

    `context` is its MQ_Context, on the dispatcher that was made last.
    """

    def __init__(self, path: Path, step: Any = None, begin: Any = None, end: Any = None) -> None:
        self.path = compile_plugin(path, PUPPET)
        self.step, self.begin, self.end = step, begin, end
        self.context = 0
        self.errors: list[BaseException] = []  # what a function raised
        self._library = ctypes.CDLL(str(self.path))  # the same that the plugin is
        functions = (HOOK(weakly(self._step)), CONTEXT_FUNCTION(weakly(self._begin)), CONTEXT_FUNCTION(weakly(self._end)))
        self._library.pull(*functions)
        _called_by_c.append(functions)
        self.callbacks: list[Any] = []

    def guarded(self, function: Any, otherwise: Any = None) -> Any:
        """The function, with what it raises kept for the test to see."""

        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except BaseException as error:
                self.errors.append(error)
                return otherwise

        return call

    def _step(self, context: int, connection: int, message: int) -> bool:
        if self.step is None:
            return False
        return bool(self.guarded(self.step, False)(context, connection, message))

    def _begin(self, context: int) -> None:
        self.context = context
        if self.begin is not None:
            self.guarded(self.begin)(context)

    def _end(self, context: int) -> None:
        if self.end is not None:
            self.guarded(self.end)(context)

    def timer(self, context: int, seconds: float, function: Any, data: int = 0) -> int:
        """MQ_startTimer: `function(data)` is called."""
        self.callbacks.append(TIMER_CALLBACK(self.guarded(function)))
        return mq.MQ_startTimer(context, seconds, self.callbacks[-1], data) or 0

    def watch(self, context: int, fd: int, events: int, function: Any, data: int = 0) -> int:
        """MQ_ioWatch: `function(watcher, fd, events, data)` is called."""
        self.callbacks.append(WATCH_CALLBACK(self.guarded(function)))
        return mq.MQ_ioWatch(context, fd, events, self.callbacks[-1], data) or 0


def weakly(method: Any) -> Any:
    """Calls the method as long as its object is there."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> Any:
        bound = reference()
        return bound(*arguments) if bound is not None else False

    return call


def start(owner: Any, puppets: list[Puppet], others: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """A dispatcher for these native plugins and other plugins."""
    plugins = owner.plugins(others or {}, config=options.pop("config", None))
    for puppet in puppets:
        plugins.load(puppet.path)
    owner.puppets = [*getattr(owner, "puppets", ()), *puppets]  # they live as long as the loop
    return owner.dispatcher(plugins, **options)


def refused(dispatcher: Any) -> int:
    """How many calls were refused, by all plugins together."""
    return sum(hook.refused for hook in dispatcher.stats().hooks)
