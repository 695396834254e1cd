"""mqcore: the plugin dispatch core of a message server.

    plugins = mqcore.Plugins("plugins/")
    dispatcher = mqcore.Dispatcher(plugins)
    outcome = await dispatcher.hook("mq_smtp_in_message")(message)

Mail is in `mqcore.mail`, a server that can be looked into in `mqcore.server`, the protocols in `mqcore.smtp`, `mqcore.amqp` and
`mqcore.milter`.
"""

import os
import sys
from typing import TYPE_CHECKING

from ._context import Context, Hold
from ._dispatcher import Dispatcher
from ._hook import Hook
from ._message import Message
from ._trace import Trace
from ._typing import HookResult
from .errors import (
    Abandoned,
    Cancelled,
    DispatcherClosed,
    HoldTimeout,
    MqError,
    NotHeld,
    PluginError,
    RetryLimit,
)
from .hooks import API_VERSION, MAILERQ_HOOKS, HookSpec
from .loop._lifetime import READ, WRITE, Timer, Watcher
from .plugins import Plugin, Plugins
from .verdicts import COMPLETE, CONTINUE, FAIL, HOLD, RETRY, Outcome, Verdict
from .watchdog import Watchdog

__all__ = [
    "API_VERSION",
    "COMPLETE",
    "CONTINUE",
    "FAIL",
    "HOLD",
    "MAILERQ_HOOKS",
    "READ",
    "RETRY",
    "WRITE",
    "Abandoned",
    "Cancelled",
    "Context",
    "Dispatcher",
    "DispatcherClosed",
    "Hold",
    "HoldTimeout",
    "Hook",
    "HookResult",
    "HookSpec",
    "Message",
    "MqError",
    "NotHeld",
    "Outcome",
    "Plugin",
    "PluginError",
    "Plugins",
    "RetryLimit",
    "Timer",
    "Trace",
    "Verdict",
    "Watchdog",
    "Watcher",
    "__version__",
    "get_include",
]

__version__: str
"""The installed version, as the package's metadata has it."""


def get_include() -> str:
    """The folder of `mqcore.h`, for compiling native plugins; `mqcore.pc`, for pkg-config, is there too."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "native", "include")


if not TYPE_CHECKING:  # to which every name would be one that a module has

    def __getattr__(name: str) -> str:
        if name == "__version__":
            from importlib.metadata import version  # takes longer than all of the core

            globals()[name] = version("mqcore")
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
