"""Steps of mails, or of other messages, through plugins, in a test."""

from __future__ import annotations

import asyncio
import difflib
import functools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from .. import Dispatcher, Message, Outcome, Trace
from .._context import CALLBACK_RAISED
from ..errors import MqError
from ..mail import Mail, Rejection
from ..mail.timeline import Changes
from .left import Running, beyond, count_works, describe_left, gives_back, noting_what_cleanup_leaves
from .plugins import PluginFactory

if TYPE_CHECKING:
    from ..plugins import Plugins
    from ..stats import Call
    from .clock import Clock


@dataclass(frozen=True)
class Result:
    """How a step ended.

    `outcome`: CONTINUE, COMPLETE or FAIL. `error`: why it failed, or None. `rejection`: what a plugin refused the mail with, or
    None. `mail`: as the plugins left it. `changes`: what they changed in all, as `+X-Tag: 1`. `timeline`: what each plugin did,
    in order, a tuple of `mqcore.stats.Call`. `hook`: the step's.
    """

    outcome: Outcome
    error: BaseException | None
    rejection: Rejection | None
    mail: Any
    changes: tuple[str, ...]
    timeline: tuple[Call, ...]
    hook: str
    before: bytes | None = field(default=None, repr=False)
    """The mail's bytes when the step began; None for a message that is no mail."""

    def diff(self) -> str:
        """What the plugins changed in the mail's bytes, as lines of a diff; empty if nothing."""
        return "" if self.before is None else diff_of(self.before, self.mail.mime)

    def describe(self) -> str:
        """What the plugins changed, for people: the diff, and what changed beside the mail's bytes; empty if nothing."""
        lines = self.diff().splitlines()
        shown = (*lines, *(change for change in self.changes if change not in lines and not change.startswith("body: ")))
        return "\n".join(shown)


def diff_of(before: bytes, now: bytes) -> str:
    """The lines that differ, with a line of context, as `diff -u` has them."""
    old, new = (mime.decode("ascii", "backslashreplace").splitlines() for mime in (before, now))
    lines = list(difflib.unified_diff(old, new, "before", "after", n=1, lineterm=""))
    return "\n".join(lines)


class Step:
    """A step that was started, by `Mq.start`, which makes it: it has ended, or a plugin holds the message. It is for as long as
    its `Mq` is open."""

    def __init__(
        self, mq: Mq, hook: str, message: Any, args: tuple[Any, ...], look: Callable[[Any], list[str]] | None = None
    ) -> None:
        self._mq = mq
        self._hook = hook
        self._message = message
        self._before = message.mime if isinstance(message, Mail) else None
        self._changes = Changes()
        self._changes(message)
        self._trace = Trace(look or Changes())
        self._result: Result | None = None
        self._outcome: Outcome | None = None
        begin = functools.partial(mq.dispatcher.hook(hook).run_traced, message, self._trace, *args, done=self._done)
        outcome = mq.clock.call(begin)
        if not self.is_over:  # a message that is held may be given back in the same turn
            self._outcome = outcome

    def _done(self, message: Any, outcome: Outcome) -> None:
        self._outcome = outcome

    @property
    def held_by(self) -> str | None:
        """The name of the plugin that holds the message; None when the step has ended."""
        holder: str | None = self._message.holder
        return holder

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._outcome is not None

    @property
    def timeline(self) -> tuple[Call, ...]:
        """What the plugins did so far; who holds the message is not in it yet."""
        return tuple(self._trace.calls)

    @property
    def not_called(self) -> tuple[str, ...]:
        """The names of the plugins that the step did not come to."""
        return self._trace.not_called

    def result(self) -> Result:
        """How the step ended; if a plugin holds the message, time passes until it has. Raises AssertionError when that never
        comes: a plugin holds the message without a `hold_timeout`, and nothing is due that could give it back."""
        if not self._mq.clock.run_until(lambda: self.is_over):
            raise AssertionError(
                f"{self._hook}: plugin {self.held_by} holds the message, and nothing is due that could give it back\n"
                + describe_left()
            )
        if self._result is not None:
            return self._result
        assert self._outcome is not None
        message = self._message
        self._result = Result(
            self._outcome,
            message.error,
            getattr(message, "rejection", None),
            message,
            tuple(self._changes(message)),
            self.timeline,
            self._hook,
            self._before,
        )
        self._mq.results.append(self._result)
        return self._result

    def cancel(self) -> None:
        """Take the message back, as a server does when the client is gone."""
        self._mq.dispatcher.cancel(self._message)
        self._mq.clock.run_until_idle()


PROBE = "mqcore/_trace.pyx"
"""Whose frames stand above those of a plugin that is looked at."""


class _Raised(logging.Handler):
    """Notes what callbacks of plugins' timers and watchers raise, which the core can do no more about than to log it; and has
    the tracebacks that are logged begin in the plugin."""

    def __init__(self, errors: list[BaseException]) -> None:
        super().__init__(logging.ERROR)
        self.errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            kind, error, traceback = record.exc_info
            while traceback is not None and traceback.tb_frame.f_code.co_filename.endswith(PROBE):
                traceback = traceback.tb_next
            record.exc_info = (kind, error, traceback or error.__traceback__)
        if record.msg == CALLBACK_RAISED and record.exc_info and record.exc_info[1]:
            self.errors.append(record.exc_info[1])


STOP_OR_WAIT = (
    "what is not needed any more is to be stopped, at the latest in mq_context_cleanup; and for what is to come, the test lets "
    "time pass, as by mq_clock.advance(seconds)"
)
USE_THE_HOLD = (
    "where its message's step is over already, as at a hold_timeout, start the timer by the Hold, "
    "context.hold(message).start_timer(...), with which it ends"
)


class Mq:
    """Runs messages through plugins, as a server would, and checks in the end that all went well.

    `clock`: the `Clock` that it runs on, which has to be open for longer. `plugins`: `mqcore.Plugins`; or a `PluginFactory`, of
    which the newest set is taken. `hold_timeout` and `max_retries` are those of `mqcore.Dispatcher`, and may be set until the
    first step.

    `close()` it, or use `with`: see there for what is checked.
    """

    def __init__(
        self, clock: Clock, plugins: Plugins | PluginFactory, *, hold_timeout: float = 30.0, max_retries: int = 16
    ) -> None:
        self.clock = clock
        self.hold_timeout = hold_timeout
        self.max_retries = max_retries
        self.results: list[Result] = []
        """Of the steps that have ended, in order."""
        self._plugins = plugins
        self._dispatchers: list[Dispatcher] = []
        self._used: Plugins | None = None
        self._works: Counter[object] = Counter()  # begun by mq_context_initialize
        self._handler = _Raised(clock.errors)
        logging.getLogger("mqcore.plugins").addHandler(self._handler)

    @property
    def plugins(self) -> Plugins:
        """Those that a step begins with now. Raises MqError when there are none yet."""
        plugins = self._plugins.newest if isinstance(self._plugins, PluginFactory) else self._plugins
        if plugins is None:
            raise MqError("there are no plugins yet; make some, as mq_plugins('plugins/10-a.py')")
        return plugins

    @property
    def dispatcher(self) -> Dispatcher:
        """The `mqcore.Dispatcher` that runs these. It is made when it is first asked for, with `mq_context_initialize` of each
        plugin, and open until `close`. Raises PluginError where that fails, MqError when there are no plugins yet."""
        plugins = self.plugins
        if self._used is not plugins:
            before = count_works()
            self._dispatchers.append(self.clock.call(self._make, plugins))
            self._works += count_works() - before
            self._used = plugins
            self.clock.ignore_open()
        return self._dispatchers[-1]

    def _make(self, plugins: Plugins) -> Dispatcher:
        """On the loop, as plugins begin what they do on it."""
        return Dispatcher(
            plugins, self.clock.loop, hold_timeout=self.hold_timeout, max_retries=self.max_retries, watchdog=None
        )

    def start(self, hook: str, mail: Message, *args: Any) -> Step:
        """Begin a step, and run it as far as it comes without time passing. `args`: those of the hook after the message, such
        as the address of `mq_smtp_in_rcptto`. The first step makes the dispatcher, and `mq_context_initialize` is called then.

        Raises what `Hook.run` does: MqError when there is no such hook, no plugin yet, or the message is in a step already,
        TypeError for other arguments than the hook's; and PluginError when a plugin's `mq_context_initialize` fails.
        """
        if not isinstance(hook, str) or not isinstance(mail, Message):
            raise TypeError(
                "a step is of a hook, by its name, and of a message, which is a mail or of another class derived from "
                f"mqcore.Message, as mq.run('mq_smtp_in_message', mq_mail()); not of {hook!r} and {mail!r}"
            )
        step = Step(self, hook, mail, args)
        self.clock.run_until_idle()
        return step

    def run(self, hook: str, mail: Message, *args: Any) -> Result:
        """Run a step to its end, however long plugins hold the message: `start`, and `Step.result`. Raises what these do."""
        return self.start(hook, mail, *args).result()

    def next_deadline(self) -> float | None:
        """When the next `hold_timeout` ends of those that run, in seconds of the clock's `now`; None if there is none."""
        ends = [
            self.clock.now - held.age + timeout
            for dispatcher in self._dispatchers
            for held in dispatcher.held()
            if (timeout := self._timeout_of(dispatcher, held.plugin))
        ]
        return min(ends) if ends else None

    def _timeout_of(self, dispatcher: Dispatcher, plugin: str) -> float:
        configs = [each.config for each in dispatcher.plugins if each.name == plugin]
        timeout: float = configs[0].get("hold_timeout", self.hold_timeout) if configs else self.hold_timeout
        return timeout

    def check(self) -> None:
        """Raises AssertionError when a message is lost or held, when a timer or watcher of a plugin runs, and when a callback
        raised; it says which, and whose.

        A timer or watcher of the context that `mq_context_initialize` began may run, and begin itself again, as a sweep does.
        What else is meant to run on is to be stopped before, or its message cancelled.
        """
        self.clock.run_until_idle()
        self._tell(self._held(), self.left())

    def close(self) -> None:
        """`check()`, but of what runs for a context after its `mq_context_cleanup`; and then close what was made, whatever that
        said. More than once is fine."""
        try:
            if self._dispatchers:
                self.clock.run_until_idle()
                held = self._held()
                plugins = [plugin for dispatcher in self._dispatchers for plugin in dispatcher.plugins]
                with noting_what_cleanup_leaves(plugins, self._works) as left:
                    self._end()
                self._tell(held, left)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close what was made, and check nothing. More than once is fine."""
        self._end()
        self.clock.errors.clear()

    def left(self) -> list[Running]:
        """The timers and watchers that run, but for what `mq_context_initialize` began."""
        return beyond(self._works)

    def _held(self) -> list[str]:
        return [problem for dispatcher in self._dispatchers for problem in _problems_of(dispatcher)]

    def _tell(self, problems: list[str], left: list[Running]) -> None:
        if left:
            problems += [describe_left(left), STOP_OR_WAIT]
            problems += [USE_THE_HOLD] if any(gives_back(each) for each in left) else []
        problems += [f"a callback raised {type(error).__name__}: {error}" for error in self.clock.errors]
        if problems:
            raise AssertionError("\n".join(problems))

    def _end(self) -> None:
        logging.getLogger("mqcore.plugins").removeHandler(self._handler)
        while self._dispatchers:
            close = self._dispatchers.pop().close
            if asyncio._get_running_loop() is None:
                self.clock.call(close)
            else:
                close()  # in a test that is a coroutine, which was told that it cannot be
        self._used = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _problems_of(dispatcher: Dispatcher) -> list[str]:
    stats = dispatcher.stats()
    problems = []
    if stats.entered != stats.continued + stats.completed + stats.failed + stats.cancelled + stats.held + stats.running:
        problems.append(f"steps are lost: {stats}")
    return problems + [f"plugin {held.plugin} still holds a message of {held.hook}" for held in dispatcher.held()]
