"""The names that mean something in a plugin: hooks, and the functions of a plugin's own life."""

from __future__ import annotations

import keyword
import unicodedata
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

    The name is the host's own: any identifier that a plugin can have a function of. Raises ValueError for a keyword, for a name
    that begins with `_`, that is not in the form in which Python keeps identifiers (NFKC), or that belongs to the lifecycle. A
    dispatcher takes hooks with at most 14 arguments of their own. Frozen; equal when name and arguments are.

    >>> HookSpec("on_upload", "folder").signature
    'on_upload(context, message, folder)'
    """

    name: str
    args: tuple[str, ...]

    def __init__(self, name: str, *args: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a hook's name is a str, not {name!r}")
        name = str.__str__(name)  # of a class of its own it may compare as it likes
        wrong = _wrong_name(name)
        if wrong:
            raise ValueError(wrong)
        for arg in args:
            if not isinstance(arg, str):
                raise TypeError(f"an argument of {name} needs a str for a name, not {arg!r}")
            if not arg.isidentifier():
                raise ValueError(f"an argument of {name} needs an identifier for a name, not {arg!r}")
        if args[:2] == ("context", "message"):
            raise ValueError(f"{name} has context and message without a word, so name only what comes after them")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "args", args)

    @property
    def signature(self) -> str:
        """How a plugin defines the hook."""
        return f"{self.name}({', '.join(('context', 'message', *self.args))})"


def _wrong_name(name: str) -> str | None:
    """Why this cannot be the name of a hook, and what to do."""
    if not name.isidentifier():
        return f"a hook's name is an identifier, since a function of that name implements it; {name!r} is none"
    if keyword.iskeyword(name):
        return f"{name!r} is a keyword of Python, so that no plugin could define a function of that name; choose another"
    if name.startswith("_"):
        return f"{name!r} begins with _, as what a plugin keeps to itself does; choose another name for the hook"
    normal = unicodedata.normalize("NFKC", name)
    if name != normal:
        return f"{name!r} would not be found, since Python reads it as {normal!r} in a plugin; declare it in that form"
    if name in LIFECYCLE:
        return f"{name} cannot be a hook: plugins have it for their own life; choose another name"
    return None


MAILERQ_HOOKS: list[HookSpec] = [
    HookSpec("mq_smtp_in_connect"),
    HookSpec("mq_smtp_in_secure"),
    HookSpec("mq_smtp_in_authenticate", "login", "password"),
    HookSpec("mq_smtp_in_mailfrom", "address"),
    HookSpec("mq_smtp_in_rcptto", "address"),
    HookSpec("mq_smtp_in_data", "mime"),
    HookSpec("mq_smtp_in_message"),
    HookSpec("mq_smtp_in_close"),
    HookSpec("mq_smtp_in_rejected"),
    HookSpec("mq_smtp_out_data"),
    HookSpec("mq_smtp_out_sent"),
]
"""MailerQ's hooks, and `mq_smtp_in_rejected`, which is ours. `Plugins` takes these unless told otherwise."""


_MAILERQ_NAMES = frozenset(spec.name for spec in MAILERQ_HOOKS)


def unknown(name: str, known: Iterable[str]) -> str:
    """What is wrong with a name that begins with mq_ and is not known."""
    if name in _MAILERQ_NAMES:
        return (
            f"{name} is a hook of MailerQ's, and hooks= put others in the place of those; "
            "to have both, give Plugins hooks=[*mqcore.MAILERQ_HOOKS, ...]"
        )
    return (
        f"{name} begins with mq_ and is no known hook{nearest(name, known)}; "
        "correct the name, choose one that does not begin with mq_, or declare it with HookSpec"
    )


_SHORTEST_MISSPELT = 6  # of two shorter names that differ in one letter, both are likely to be meant


def misspelt(name: str, missing: Iterable[str]) -> str | None:
    """What is wrong with a function's name that is one edit away from a hook which the plugin does not have."""
    if name.startswith("_"):
        return None
    for hook in missing:
        if len(hook) >= _SHORTEST_MISSPELT and _one_edit(name, hook):
            return (
                f"{name} is one letter away from the hook {hook}, which this plugin does not have; correct the name, "
                "or, if it is no hook, choose another or begin it with _"
            )
    return None


def nearly(name: str, missing: Iterable[str]) -> str | None:
    """The hook of MailerQ's that a function most likely was to be: one without its mq_, shortened or misspelt."""
    if name.lower() in _MAILERQ_NAMES.intersection(missing):
        return name.lower()
    plain = name.lower().removeprefix("on_")
    if not plain.startswith(("smtp", "in_", "out_")):
        return None
    hooks = {hook.removeprefix("mq_"): hook for hook in missing if hook in _MAILERQ_NAMES}
    if f"smtp_{plain}" in hooks:
        return hooks[f"smtp_{plain}"]
    if not plain.startswith("smtp"):
        return None
    longer = [hook for hook in hooks if hook.startswith(plain) and plain not in ("smtp", "smtp_in", "smtp_out")]
    close = longer[0] if longer else close_to(plain, hooks, 0.88)
    return hooks[close] if close else None


def _one_edit(one: str, other: str) -> bool:
    """Whether one letter inserted, deleted, replaced, or swapped with its neighbour makes one of the other."""
    if abs(len(one) - len(other)) > 1 or one == other:
        return False
    letters = zip(one, other, strict=False)
    same = next((place for place, (left, right) in enumerate(letters) if left != right), min(len(one), len(other)))
    short, long = sorted((one[same:], other[same:]), key=len)
    if len(short) < len(long):
        return short == long[1:]
    return short[1:] == long[1:] or (short[1::-1] == long[:2] and short[2:] == long[2:])


class MissingSetting(KeyError):
    """What `context.config[key]` raises where the plugin's config has no such key."""

    def __init__(self, key: object, hint: str = "") -> None:
        super().__init__(key)
        self.hint = hint

    def __str__(self) -> str:
        return f"{super().__str__()}; {self.hint}"


class Settings(dict[str, object]):
    """A plugin's config."""

    def __init__(self, plugin: str, table: Mapping[str, object]) -> None:
        super().__init__(table)
        self._plugin = plugin

    def __missing__(self, key: object) -> object:
        close = close_to(key, [name for name in self if type(name) is str], 0.7) if type(key) is str else None
        if close:
            raise MissingSetting(key, f"the plugin's config has no {key}, but {close}, which may be meant")
        raise MissingSetting(key, f'set it in [plugins."{self._plugin}"], or read it by config.get')


def nearest(name: str, known: Iterable[str]) -> str:
    close = close_to(name, known, 0)
    return f"; the nearest name is {close}" if close else ""


def close_to(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most like of these names; None if none is as like as `cutoff`, of 1."""
    import difflib  # takes its time, and only mistakes need it

    return next(iter(difflib.get_close_matches(name, known, 1, cutoff)), None)
