"""The rules of control (docs: the rules are numbered 1 to 20) as plain Python: the executable specification.

It has the public API of mqcore for what it covers, with a queue that is drained by hand (`Dispatcher.drain`) and a clock
that is set by hand (`Dispatcher.advance`). It is slow, has no loop, no timers and no file descriptors, and drives a
coroutine hook itself, one `await asyncio.sleep(0)` at each drain. The compiled core is tested against it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import weakref
from collections import deque
from types import SimpleNamespace
from typing import Any, Self

from mqcore import COMPLETE, CONTINUE, FAIL, RETRY, errors
from mqcore.stats import HOLD_TIMES, Held, HookStats, Stats

# A step is in one of these states. RUNNING: a hook is being called. HELD: a plugin has the message. QUEUED: it was
# given back, and waits for the loop. ENDED: it has an outcome.
RUNNING, HELD, QUEUED, ENDED = "running", "held", "queued", "ended"
HOLD = "hold"  # what a hook said by returning true


class Message:
    error: BaseException | None
    retries: int
    data: dict[str, Any]
    _step: Step | None
    _finalized: bool

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # a subclass need not call an __init__ of ours
        self = super().__new__(cls)
        self.error, self.retries, self.data, self._step, self._finalized = None, 0, {}, None, False
        return self

    @property
    def holder(self) -> str | None:
        step = self._step
        return step.context.plugin.name if step and step.state is HELD else None

    def skip_others(self) -> None:
        if self._step and self._step.context:
            self._step.skipping = True  # rule 5

    def __del__(self) -> None:
        self._finalized = True
        if self._step and self._step.state is HELD:  # rule 12: only queue; the object lives until the step has failed
            self._step.message = self
            self._step.dispatcher._give(self._step, FAIL, errors.Abandoned(f"{self._step.where}: the message was dropped"))


class Step:
    """One run of one hook for one message."""

    def __init__(self, dispatcher: Dispatcher, hook: str, message: Message, args: tuple[Any, ...], done: Any) -> None:
        self.dispatcher, self.hook, self.args, self.done = dispatcher, hook, args, done
        self.message: Message | None = message  # None while it is held weakly (rule 12)
        self.weak = weakref.ref(message)
        self.chain: list[Context] = []  # rule 5: as it was when the step began, until a retry
        self.place = 0
        self.state = RUNNING
        self.was_held = False  # `run` returned None, so `done` is due
        self.context: Any = None  # whose turn it is
        self.token: object = None  # that context's control of the message, new at each call of a hook; None: no control
        self.hold: Any = None  # a weak reference to the Hold of that control, if one was asked for
        self.early: tuple[Any, Any] | None = None  # rule 7: what was given back before the hook returned
        self.doom: BaseException | None = None  # cancelled or closed while a hook ran
        self.skipping = False  # rule 5: continue and retry are the same as complete
        self.coroutine: Any = None
        self.due: float | None = None
        message._step = self  # in a step from now on

    @property
    def where(self) -> str:
        return f"plugin {self.context.plugin.name}, hook {self.hook}"

    @property
    def row(self) -> dict[str, int]:
        return self.context.rows[self.hook]


class Context:
    def __init__(self, dispatcher: Dispatcher, plugin: Any) -> None:
        self.dispatcher, self.plugin, self.config, self.data = dispatcher, plugin, plugin.config, {}
        counts = "calls holds continues completes retries failures timeouts abandoned refused retry_limits"
        self.rows = {  # one for a plugin's name and hook, for the dispatcher's life
            hook: dispatcher.rows.setdefault((plugin.name, hook), dict.fromkeys(counts.split(), 0)) for hook in plugin.hooks
        }

    def continue_(self, message: Message) -> None:
        self._give_back(message, None, CONTINUE)

    def complete(self, message: Message) -> None:
        self._give_back(message, None, COMPLETE)

    def retry(self, message: Message) -> None:
        self._give_back(message, None, RETRY)

    def fail(self, message: Message, error: BaseException | str) -> None:
        self._give_back(message, None, FAIL, as_error(error))

    def hold(self, message: Message) -> Hold:
        step = self._current(message, None)
        hold = step.hold and step.hold()
        if not hold or hold._token is not step.token:
            hold = Hold(self, message, step.token)
            step.hold = weakref.ref(hold)
        return hold

    def _give_back(self, message: Message, token: object, kind: Any, error: Any = None) -> None:
        with self.dispatcher.lock:  # rule 9: any thread, and the claim is made in it
            step = self._current(message, token)
            self._count(step.hook, kind)
            if step.state is HELD and not step.coroutine:
                self.dispatcher._give(step, kind, error)
            else:
                step.early = kind, error  # rule 7; a coroutine hook has not returned either

    def _count(self, hook: str, kind: Any) -> None:
        name = {CONTINUE: "continues", COMPLETE: "completes", RETRY: "retries"}.get(kind)
        if name:
            self.rows[hook][name] += 1

    def _current(self, message: Message, token: object) -> Step:
        """The step in which this plugin has control of the message; rule 8: NotHeld, and counted, when there is none."""
        if not isinstance(message, Message):
            raise TypeError(f"not a message: {message!r}")
        step = message._step
        if step and step.token and step.context is self and not step.early and not step.doom:
            if token is None or token is step.token:
                return step
        hook = step.hook if step and step.hook in self.rows else next(iter(self.rows))
        self.rows[hook]["refused"] += 1
        raise errors.NotHeld(f"plugin {self.plugin.name} does not hold it ({hook}); {message.holder or 'nobody'} does")


class Hold:
    def __init__(self, context: Context, message: Message, token: object) -> None:
        self.context, self.message, self._token = context, message, token
        self._returned = False  # the hook returned this one: its end is the end of the hold (rule 12)

    def continue_(self) -> None:
        self.context._give_back(self.message, self._token, CONTINUE)

    def complete(self) -> None:
        self.context._give_back(self.message, self._token, COMPLETE)

    def retry(self) -> None:
        self.context._give_back(self.message, self._token, RETRY)

    def fail(self, error: BaseException | str) -> None:
        self.context._give_back(self.message, self._token, FAIL, as_error(error))

    def __del__(self) -> None:
        step = self.message._step
        if self._returned and step and step.state is HELD and step.token is self._token and not step.coroutine:
            self.context.dispatcher._give(step, FAIL, errors.Abandoned(f"{step.where}: the Hold was dropped"))


class Hook:
    def __init__(self, dispatcher: Dispatcher, name: str) -> None:
        self.dispatcher, self.name = dispatcher, name

    def run(self, message: Message, *args: Any, done: Any = None) -> Any:
        return self.run_many([message], *args, done=done)[0]

    def run_many(self, messages: Any, *args: Any, done: Any = None) -> list[Any]:
        self.dispatcher._check_usable()
        messages = list(messages)
        seen: set[int] = set()
        for message in messages:
            if not isinstance(message, Message):
                raise TypeError(f"not a message: {message!r}")
            if message._step or id(message) in seen:
                raise errors.MqError("the message is in a step already")
            seen.add(id(message))
        if done is not None and not callable(done):
            raise TypeError(f"done is not callable: {done!r}")
        steps = [Step(self.dispatcher, self.name, message, args, done) for message in messages]
        return [self.dispatcher._start(step) for step in steps]


class Dispatcher:
    def __init__(self, plugins: Any, loop: Any = None, *, hold_timeout: float = 30.0, max_retries: int = 16) -> None:
        self.loop, self.hold_timeout, self.max_retries = loop, hold_timeout, max_retries
        self.thread = threading.get_ident()
        self.lock = threading.RLock()
        self.closed = False
        self.clock = 0.0
        self.queue: deque[tuple[Step, Any, Any]] = deque()
        self.open: dict[Step, None] = {}  # every step that has not ended, oldest first
        self.in_loop = False  # `drain` or `advance` is at work
        self.counts = dict.fromkeys("entered continued completed failed cancelled".split(), 0)
        self.leaving: BaseException | None = None
        self.rows: dict[tuple[str, str], dict[str, int]] = {}
        self.contexts: dict[Any, Context] = {}
        self.snapshot: Any = ()
        self.plugins = plugins
        with plugins._attach(self) as snapshot:
            self._prepare(snapshot).commit()

    def chain(self, hook: str) -> list[Context]:
        # Rules 1 and 2: the snapshot is in byte order of names; who does not implement the hook, or is paused, is not in it.
        plugins = self.snapshot
        return [self.contexts[plugin] for plugin in plugins if hook in plugin.hooks and plugin.name not in plugins.paused]

    def hook(self, name: str) -> Hook:
        if name not in self.plugins.hooks:
            raise errors.MqError(f"no hook of that name: {name}")
        return Hook(self, name)

    # The course of a step.

    def _start(self, step: Step) -> Any:
        self.counts["entered"] += 1
        self.open[step] = None
        step.message.error, step.message.retries = None, 0
        step.chain = self.chain(step.hook)
        if self.closed:
            step.doom = errors.DispatcherClosed("the dispatcher was closed")
        return self._go(step, None)

    def _go(self, step: Step, kind: Any, error: Any = None) -> Any:
        """Carry out what a plugin decided, then call plugins until one has the message or the step has an outcome."""
        step.state = RUNNING
        while True:
            if step.skipping and (kind is CONTINUE or kind is RETRY):
                kind = COMPLETE
            if kind is FAIL:
                return self._end(step, FAIL, error)
            if kind is COMPLETE:
                return self._end(step, COMPLETE)  # rule 5
            if kind is CONTINUE:
                step.place += 1  # rules 3 and 5
            if kind is RETRY:
                if step.message.retries == self.max_retries:  # rule 11
                    step.row["retry_limits"] += 1
                    return self._end(step, FAIL, errors.RetryLimit(step.where))
                step.message.retries += 1
                step.chain, step.place = self.chain(step.hook), 0  # rule 5: the chain as it is now
                self._let_go()
            if step.doom:
                return self._end(step, FAIL, step.doom)
            if step.place == len(step.chain):
                return self._end(step, CONTINUE)  # rule 3
            kind, error = self._call(step)
            if kind is HOLD:
                return None  # rule 4

    def _call(self, step: Step) -> tuple[Any, Any]:
        """Call the hook of the plugin whose turn it is: what it decided."""
        step.context, step.token = step.chain[step.place], object()
        step.row["calls"] += 1
        try:
            returned = [step.context.plugin.hooks[step.hook](step.context, step.message, *step.args)]
        except BaseException as error:
            return self._decided(step, error=error)
        if inspect.iscoroutine(returned[0]):
            return self._start_coroutine(step, returned.pop())
        return self._decided(step, returned.pop())  # this frame, which a traceback may keep, must not keep a Hold

    def _start_coroutine(self, step: Step, coroutine: Any) -> tuple[Any, Any]:
        """A coroutine hook holds the message from when it first waits; where the loop does not run, from the beginning."""
        if self.in_loop:
            try:
                coroutine.send(None)
            except StopIteration as stop:
                return self._decided(step, stop.value)
            except BaseException as error:
                return self._decided(step, error=error)
            if step.doom:
                with contextlib.suppress(asyncio.CancelledError, StopIteration):
                    coroutine.throw(asyncio.CancelledError)
                return self._decided(step)
        step.coroutine = coroutine
        return self._hold(step, strongly=True)

    def _decided(self, step: Step, verdict: Any = None, error: BaseException | None = None) -> tuple[Any, Any]:
        with self.lock:  # other threads give back before the verdict or after it
            decision = self._raised(step, error) if error else self._verdict(step, verdict)
            if decision[0] is not HOLD:
                step.token = None
            return decision

    def _raised(self, step: Step, error: BaseException) -> tuple[Any, Any]:
        """Rule 13: a hook that raises, or does what it may not."""
        step.early = None
        error.add_note(f"in {step.where}")
        step.context.plugin.log.error("%s failed", step.hook, exc_info=error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.leaving = error
        elif not step.doom and step.context.config.get("on_error") == "continue":
            return CONTINUE, None
        return FAIL, step.doom if isinstance(step.doom, errors.Cancelled) else error

    def _verdict(self, step: Step, verdict: Any) -> tuple[Any, Any]:
        """What a hook decided by what it returned and, perhaps, gave back before (rule 7)."""
        if step.doom:
            return FAIL, step.doom
        if verdict is False or verdict is None or verdict is CONTINUE:
            kind: Any = CONTINUE
        elif verdict is COMPLETE or verdict is RETRY:
            kind = verdict
        elif verdict is True or (isinstance(verdict, Hold) and verdict._token is step.token):
            kind = HOLD
        else:
            kind = None
        early, step.early = step.early, None
        if early and kind is HOLD:
            self._hold(step, strongly=True)
            self._give(step, *early)  # a hold that is over at once
            return HOLD, None
        if early and (kind is early[0] or early[0] is FAIL):
            return early  # the same thing; or a failure, whatever it returns
        if early and kind:
            return self._raised(step, errors.MqError(f"{step.where} gave back {early[0]} and returned {verdict!r}"))
        if not kind:
            return self._raised(step, TypeError(f"{step.where} returned {verdict!r}"))
        if kind is HOLD:
            return self._hold(step, verdict)
        if kind is not CONTINUE:
            step.context._count(step.hook, kind)
        return kind, None

    def _hold(self, step: Step, verdict: Any = True, strongly: bool = False) -> tuple[Any, Any]:
        """Rule 4: the plugin has the message from now on."""
        message = step.message
        if step.state is RUNNING:  # and not a coroutine hook that returned true: that is still the same hold
            step.row["holds"] += 1
            timeout = step.context.config.get("hold_timeout", self.hold_timeout)
            step.due = self.clock + timeout if timeout else None  # rule 10
        step.state, step.was_held = HELD, True
        if isinstance(verdict, Hold):
            verdict._returned = True
        # Rule 12: a finalizer runs once for an object, and not at all when a subclass has its own.
        if not strongly and not message._finalized and type(message).__del__ is Message.__del__:
            step.message = None
        return HOLD, None

    def _give(self, step: Step, kind: Any, error: Any = None) -> None:
        """Rule 6: whatever ends a hold is queued."""
        step.message = step.message or step.weak()
        step.state, step.token = QUEUED, None
        self.queue.append((step, kind, error))

    def _end(self, step: Step, outcome: Any, error: Any = None) -> Any:
        message = step.message = step.message or step.weak()
        coroutine, step.coroutine = step.coroutine, None
        step.state, step.token, message._step, message.error = ENDED, None, None, error
        del self.open[step]
        if isinstance(error, errors.Cancelled):
            self.counts["cancelled"] += 1
        else:
            self.counts[{CONTINUE: "continued", COMPLETE: "completed", FAIL: "failed"}[outcome]] += 1
        if outcome is FAIL and step.context and not isinstance(error, errors.Cancelled):
            step.row["failures"] += 1
            step.row["timeouts"] += isinstance(error, errors.HoldTimeout)
            step.row["abandoned"] += isinstance(error, errors.Abandoned)
        if coroutine and not coroutine.cr_running:  # rule 14: cancelled with its step
            with contextlib.suppress(asyncio.CancelledError, StopIteration):
                coroutine.throw(asyncio.CancelledError)
        self._let_go()
        if step.was_held and step.done:  # rule 15
            try:
                step.done(message, outcome)
            except Exception as raised:
                self.loop.call_exception_handler({"message": "done raised", "exception": raised})
        return outcome

    # What the loop does.

    def drain(self) -> None:
        """Carry out what is queued, and what that queues; then let every coroutine hook run on."""
        self.in_loop = True
        while self.queue:
            step, kind, error = self.queue.popleft()
            if step.state is QUEUED:  # not cancelled since
                self._go(step, kind, error)
        for step in [step for step in self.open if step.coroutine]:
            if step.coroutine:
                self._run_on(step)
        self.in_loop = False
        if leaving := self.leaving:
            self.leaving = None
            raise leaving

    def _run_on(self, step: Step) -> None:
        coroutine = step.coroutine
        verdict, raised, ended = None, None, True
        try:
            coroutine.send(None)
            ended = False
        except StopIteration as stop:
            verdict = stop.value
        except BaseException as error:
            raised = error
        if step.state is ENDED:  # it ended its own step: cancelled as soon as it waits
            if not ended:
                with contextlib.suppress(asyncio.CancelledError, StopIteration):
                    coroutine.throw(asyncio.CancelledError)
        elif ended:
            kind, error = self._decided(step, verdict, raised)
            step.coroutine = None
            if kind is not HOLD:
                self._go(step, kind, error)

    def advance(self, seconds: float) -> None:
        """Rule 10: let time pass."""
        self.clock += seconds
        self.in_loop = True
        expired = [step for step in self.open if step.state is HELD and step.due is not None and step.due <= self.clock]
        for step in sorted(expired, key=lambda step: step.due or 0.0):
            if step.state is HELD:
                self._end(step, FAIL, errors.HoldTimeout(f"held too long by {step.where}"))
        self.in_loop = False

    # Ending and looking.

    def cancel(self, message: Message) -> bool:
        if not isinstance(message, Message):
            raise TypeError(f"not a message: {message!r}")
        step = message._step
        if not step or step.dispatcher is not self:
            return False
        self._check_usable()
        self._stop(step, errors.Cancelled("cancelled"))  # rule 14
        return True

    def close(self) -> None:
        if self.closed:
            return
        self._check_usable()
        self.closed = True
        for step in list(self.open):
            if step in self.open:
                self._stop(step, errors.DispatcherClosed("the dispatcher was closed"))
        self.snapshot = ()
        self._let_go()
        self.plugins._detach(self)
        if leaving := self.leaving:
            self.leaving = None
            raise leaving

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _stop(self, step: Step, error: BaseException) -> None:
        if step.state is RUNNING:
            step.doom = step.doom or error  # when the hook returns
        else:
            self._end(step, FAIL, error)

    def stats(self) -> Stats:
        held = sum(step.state is HELD for step in self.open)
        rows = []
        for (plugin, hook), row in self.rows.items():
            now = sum(one.plugin == plugin and one.hook == hook for one in self.held())
            over = (row["holds"] - now, *[0] * len(HOLD_TIMES))  # within no time
            rows.append(
                HookStats(plugin, hook, **row, seconds=0.0, longest=0.0, held_seconds=0.0, held=now, hold_times=over)
            )
        return Stats(**self.counts, held=held, running=len(self.open) - held, hooks=tuple(rows))

    def held(self) -> list[Held]:
        return [
            Held(step.weak(), step.context.plugin.name, step.hook, 0.0) for step in self.open if step.state is HELD
        ]

    def _check_usable(self) -> None:
        if threading.get_ident() != self.thread:  # rule 9
            raise errors.MqError("a dispatcher belongs to the thread that made it, and this is another thread")
        if self.closed:
            raise errors.DispatcherClosed("the dispatcher is closed")

    # Rules 17 and 18: contexts begin and end as the list of plugins changes, and no step is disturbed.

    def _prepare(self, plugins: tuple[Any, ...]) -> Any:
        fresh: dict[Any, Context] = {}

        def commit() -> None:
            self.contexts.update(fresh)
            self.snapshot = plugins
            self._let_go()

        def discard() -> None:
            for context in fresh.values():
                cleanup(context)

        for plugin in plugins:
            if plugin not in self.contexts:
                context = Context(self, plugin)
                try:
                    if plugin.context_initialize:
                        plugin.context_initialize(context)
                except Exception as error:
                    discard()
                    raise errors.PluginError(f"mq_context_initialize: {error!r}", plugin=plugin.name) from error
                plugin._acquire()
                fresh[plugin] = context
        return SimpleNamespace(commit=commit, discard=discard)

    def _let_go(self) -> None:
        """End the contexts of plugins that are gone from the list and from every step's chain."""
        if len(self.contexts) == len(self.snapshot):
            return
        used = {context for step in self.open for context in step.chain}
        for plugin, context in reversed(list(self.contexts.items())):
            if plugin not in self.snapshot and context not in used:
                del self.contexts[plugin]
                cleanup(context)


def cleanup(context: Context) -> None:
    try:
        if context.plugin.context_cleanup:
            context.plugin.context_cleanup(context)
    except Exception as error:
        context.plugin.log.error("mq_context_cleanup raised", exc_info=error)
    context.plugin._release()


def as_error(error: BaseException | str) -> BaseException:
    if isinstance(error, str):
        return errors.MqError(error)
    if not isinstance(error, BaseException):
        raise TypeError(f"an error is an exception or a str, not {error!r}")
    return error
