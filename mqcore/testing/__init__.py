"""The plugin author's kit: tests of plugins without a server, and in no time.

    with Clock() as clock, Mq(clock, plugins) as mq:
        result = mq.run("mq_smtp_in_message", make_mail(headers={"Subject": "hello"}))

It needs no pytest, and works with unittest. For pytest there are fixtures: see docs/testing.md. Times are in seconds of the
test's clock. All of it is for one thread, the one that made the clock. What is made is closed in the other order: first what
was made with an `Mq`, then that, then its clock, then the plugins.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clock import Clock
    from .mail import make_mail
    from .milter import MilterDialogues
    from .peer import Peer
    from .plugins import PluginFactory
    from .smtp import SmtpDialogues
    from .steps import Mq, Result, Step

__all__ = ["Clock", "MilterDialogues", "Mq", "Peer", "PluginFactory", "Result", "SmtpDialogues", "Step", "make_mail"]

# Imported when it is asked for: pytest loads this package in each of its runs, as it has a plugin for it.
_HOMES = {
    "Clock": "clock",
    "MilterDialogues": "milter",
    "Mq": "steps",
    "Peer": "peer",
    "PluginFactory": "plugins",
    "Result": "steps",
    "SmtpDialogues": "smtp",
    "Step": "steps",
    "make_mail": "mail",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    """With what is imported when it is asked for."""
    return sorted({*globals(), *_HOMES})
