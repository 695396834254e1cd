"""The names that mean something in a plugin: hooks, and the functions of a plugin's own life."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

API_VERSION: int = 1
"""What `mq_version` of a plugin must be, or return."""

LIFECYCLE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mq_version": (),
        "mq_initialize": (),
        "mq_cleanup": (),
        "mq_context_initialize": ("context",),
        "mq_context_cleanup": ("context",),
    }
)
"""The functions of a plugin's own life, which are no hooks, with their arguments."""


@dataclass(frozen=True, init=False, slots=True)
class HookSpec:
    """Declares a hook: its name, and the names of what it is called with after the context and the message.

    >>> HookSpec("mq_smtp_in_mailfrom", "address").signature
    'mq_smtp_in_mailfrom(context, message, address)'
    """

    name: str
    args: tuple[str, ...]

    def __init__(self, name: str, *args: str) -> None:
        if not (name.startswith("mq_") and name.isidentifier()):
            raise ValueError(f"a hook's name is an identifier that begins with mq_, not {name!r}")
        if name in LIFECYCLE:
            raise ValueError(f"{name} cannot be a hook: plugins have it for their own life")
        for arg in args:
            if not arg.isidentifier():
                raise ValueError(f"an argument of {name} needs an identifier for a name, not {arg!r}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "args", args)

    @property
    def signature(self) -> str:
        """How a plugin defines the hook."""
        return f"{self.name}({', '.join(('context', 'message', *self.args))})"


MAILERQ_HOOKS: list[HookSpec] = [
    HookSpec("mq_smtp_in_connect"),
    HookSpec("mq_smtp_in_secure"),
    HookSpec("mq_smtp_in_authenticate", "login", "password"),
    HookSpec("mq_smtp_in_mailfrom", "address"),
    HookSpec("mq_smtp_in_rcptto", "address"),
    HookSpec("mq_smtp_in_data", "mime"),
    HookSpec("mq_smtp_in_message"),
    HookSpec("mq_smtp_in_close"),
    HookSpec("mq_smtp_out_data"),
    HookSpec("mq_smtp_out_sent"),
]
"""MailerQ's hooks, which `Plugins` takes unless told otherwise."""


def unknown(name: str, known: Iterable[str]) -> str:
    """What is wrong with a name that begins with mq_ and is not known."""
    return (
        f"{name} begins with mq_ and is no known hook{nearest(name, known)}; "
        "correct the name, choose one that does not begin with mq_, or declare it with HookSpec"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, cutoff=0)
    return f"; the nearest name is {close[0]}" if close else ""
