"""What a dispatcher tells about itself: plain values, as of one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ._message import Message


HOLD_TIMES = tuple(2**power / 1000 for power in range(16))
"""Seconds: the bounds of `HookStats.hold_times`."""


class HookStats(NamedTuple):
    """One hook of one plugin, since the dispatcher was made.

    There is one row for a plugin's name and a hook, for the dispatcher's life, and its numbers never fall: new code of the
    same name, after a reload, goes on in it, and the row of a name that was removed stays.

    `continues`, `completes` and `retries` count give-backs, the last two also what hooks returned. `failures` are the steps
    that failed at this plugin; `timeouts`, `abandoned` and `retry_limits` are the parts of them that its `hold_timeout`
    ended, that nobody could give back any more, or that it let begin again too often. `refused` are the give-backs that
    raised NotHeld (hook "" stands for messages that had been in no step). `seconds` in the hook, in all, and `longest` are
    estimated from samples: the dispatcher's first step, of whichever hook, and about one in 256; 0 as long as none was of
    this hook. `held` is how many messages the plugin holds now; what another thread gave back counts as held until the
    dispatcher comes to it. `held_seconds` is how long the holds took that are over, in all, until the message went on, and
    `hold_times` how many took up to 1, 2, 4 ... 32,768 ms (`HOLD_TIMES`) but longer than the bound before, and, as the last
    of its 17 numbers, how many took longer than that.
    """

    plugin: str
    hook: str
    calls: int
    holds: int
    continues: int
    completes: int
    retries: int
    failures: int
    timeouts: int
    abandoned: int
    refused: int
    seconds: float
    longest: float
    held_seconds: float
    held: int
    hold_times: tuple[int, ...]
    retry_limits: int


@dataclass(frozen=True, slots=True)
class Stats:
    """A dispatcher's books: `entered == continued + completed + failed + cancelled + held + running`, always.

    The first five count steps since the dispatcher was made. `held` is how many messages plugins hold now; `running` how many
    are in a hook or wait for a tick after they were given back.
    """

    entered: int
    continued: int
    completed: int
    failed: int
    cancelled: int
    held: int
    running: int
    hooks: tuple[HookStats, ...]


@dataclass(frozen=True, slots=True)
class Blocked:
    """How often a hook or callback kept the loop for longer than the watchdog's limit. `hook` is None for the callbacks of a
    plugin's timers and watchers; with no plugin, "done" for the `done` of steps and "reload" for a reload of a running server;
    both are None for what is no plugin's."""

    plugin: str | None
    hook: str | None
    times: int


@dataclass(frozen=True, slots=True)
class Lag:
    """What a dispatcher's watchdog has seen: how many `turns` the loop has made, how many `seconds` they took, in all, and the
    `longest`, to the millisecond; for each of `buckets` (the most seconds, and how many turns were as long and no shorter than
    the bucket before has them); and who blocked it."""

    turns: int
    seconds: float
    longest: float
    buckets: tuple[tuple[float, int], ...]
    blocked: tuple[Blocked, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A message that is held now: by which plugin, in which hook, for how long (`age`, seconds)."""

    message: Message
    plugin: str
    hook: str
    age: float


class Call(NamedTuple):
    """One call of a plugin in a step that is traced (`mqcore.Trace`).

    `verdict`: CONTINUE, COMPLETE, RETRY or FAIL, how the step went on from it. `begin`: seconds since the step began.
    `seconds`: how long the call took; `held`: how long the plugin held the message after that, until it went on, None if it
    did not. (Of a native plugin that held it, call and hold are one time, in `held`, and `seconds` is None.) `changes`: what
    the trace's `look` said. `error`: what the hook raised, or why the step failed, as text.
    """

    plugin: str
    verdict: str
    begin: float
    seconds: float | None
    held: float | None
    changes: tuple[str, ...]
    error: str | None
