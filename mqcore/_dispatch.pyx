"""What a host uses: `Hook`, to run messages through, and `Dispatcher`, one worker's engine."""

import asyncio
import difflib
import inspect
import logging

cimport cython
from libc.stdint cimport uint64_t

from ._chain cimport Route, new_chain
from ._context cimport Context, new_context
from .loop._reactor cimport Task, ends_program, PyThread_get_thread_ident
from ._message cimport HELD, IDLE, RUNNING, Counters, Message, Tally, native_side
from .loop._seal cimport seal
from ._step cimport MOST_ARGUMENTS, Steps

from .loop._ending import Ending
from ._waiting import outcome_of
from .errors import DispatcherClosed, MqError, PluginError
from .plugins import Plugins
from .stats import Held, HookStats, Stats

cdef dict hook_names = {}  # name -> name, kept for ever: entries and messages refer to them without counting


# ------------------------------------------------------------------------------------------------------------------ Hook

@cython.final
cdef class Hook(Route):
    """One hook on one dispatcher, from `dispatcher.hook(name)`: runs messages through the plugins that implement it.

    `name`, `spec` (its HookSpec), `dispatcher`. Belongs to the dispatcher's thread. A message is in one step at a time: to
    run it again before its step has ended is an MqError. What the extra arguments refer to is kept until the step ends.
    """

    def __call__(self, Message message not None, *args):
        """`await hook(message, *args)` gives the Outcome. uvloop only: on pyuv an MqError.

        Cancelling the awaiting task cancels the step. The awaiting refers strongly to the message.
        """
        if self.dispatcher.reactor.library.owner != "uvloop":
            raise MqError(f"await {self.name}(...) needs a uvloop loop; on pyuv use run() with done=")
        return outcome_of(self, message, args)

    def _wait_for(self, Message message not None):
        """A Waiter for the step that the message is in."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.dispatcher = self.dispatcher
        waiter.future = self.dispatcher.reactor.loop.create_future()
        message.done = waiter
        message.track()
        return waiter

    def run(self, Message message not None, *args, done=None):
        """Run the step, now: an Outcome, or None when a plugin holds the message, and `done(message, outcome)` later.

        `done` is called once for each run that returned None, in a turn of the loop or before `cancel()` or `close()` returns,
        and never otherwise. What it raises goes to the loop's exception handler. Without it the outcome of a step that was
        held is nobody's.

        Raises MqError for a message that is in a step, on another thread, or in the child of a fork; DispatcherClosed after
        close(); TypeError for other arguments than the hook has. What plugins raise is in `message.error`.
        """
        return self.run_one(message, args, done)

    cpdef object run_one(self, Message message, tuple args, object done):
        """`run`, for callers in C: the same with `args` as a tuple and `done` as a callable or None."""
        if message is None or args is None:
            raise TypeError(f"{self.name}: run_one() needs a message and a tuple of arguments")
        self.check_call(args, done)
        if message.state != IDLE:
            raise MqError(f"{self.name}: {in_step(message)}")
        message.state = RUNNING
        return <object>self.dispatcher.begin(self.chain, message, args, done)

    def run_many(self, messages, *args, done=None):
        """`run` for each of an iterable of messages: a list of what it returned, in order.

        Checks every message before it starts any: raises what `run` raises, also for a message that comes twice, and then
        nothing was started.
        """
        cdef list taken = list(messages)
        cdef Py_ssize_t started = 0
        self.check_call(args, done)
        try:
            for each in taken:
                if not isinstance(each, Message):
                    raise TypeError(f"{self.name}: run_many() needs messages, not {each!r}")
                if (<Message>each).state != IDLE:
                    raise MqError(f"{self.name}: message {started} of run_many(): {in_step(each)}")
                (<Message>each).state = RUNNING
                started += 1
        except BaseException:
            for each in taken[:started]:
                (<Message>each).state = IDLE
            raise
        return self.dispatcher.begin_all(self, taken, args, done)

    cdef int check_call(self, tuple args, object done) except -1:
        self.dispatcher.reactor.check(self.name)
        if len(args) != self.extra:
            raise TypeError(f"{self.spec.signature}: {len(args)} extra arguments were given, {self.extra} are needed")
        if done is not None and not callable(done):
            raise TypeError(f"{self.name}: done must be callable, not {done!r}")
        return 0

    def __repr__(self):
        return f"<mqcore.Hook {self.name}, {len(self.chain.contexts)} plugins>"


cdef str in_step(Message message):
    if message.state == HELD:
        return (f"the message is in a step of {<str>message.last_hook} that has not ended: "
                f"plugin {<str>message.entry.plugin} holds it")
    return "the message is in a step that has not ended"


@cython.final
cdef class Waiter:
    """The `done` of an awaited step, which has a future."""
    cdef Dispatcher dispatcher
    cdef readonly object future

    def __call__(self, message, outcome):
        if not self.future.done() and not self.future.get_loop().is_closed():
            self.future.set_result(outcome)

    def end(self, Message message not None):
        """Nobody waits any more. If the step has not ended, the task was cancelled or the coroutine closed: a collected one on
        any thread."""
        if message.done is self and self.dispatcher.reactor.thread == PyThread_get_thread_ident():
            self.dispatcher.cancel(message)


# ------------------------------------------------------------------------------------------------------------ Dispatcher

cdef class Dispatcher(Steps):
    """One worker's engine: a loop, the chains and the contexts; one per thread.

    `plugins`: Plugins; their changes reach the dispatcher, between steps. `loop`: a uvloop.Loop or pyuv.Loop; without it
    the running uvloop loop. `hold_timeout`: seconds that a plugin may hold a message, unless its config says otherwise;
    0: no limit. `max_retries`: how often one step may start again.

    Use it with `with` or `async with`, or `close()` it. A uvloop loop that ends closes it too; on pyuv you must. Until
    then it keeps itself alive. All methods but `stats`, and giving back, belong to the thread that runs the loop.

    A coroutine hook runs in a task of its own, in a copy of the context variables of `run`. (Where a retry brought a chain
    with coroutine hooks into a step that began without any, of those of the loop.)

    Raises TypeError for another loop, MqError where no loop runs or a hook has more than 14 extra arguments, ValueError for
    a timeout or number of retries out of range, PluginError when a plugin's `mq_context_initialize` fails or it has a
    coroutine hook on pyuv, ImportError where the loop's libuv cannot be used.
    """

    def __cinit__(self):
        self.hooks = {}
        self.contexts = {}
        self.retired = []

    def __init__(self, plugins, loop=None, *, hold_timeout=30.0, max_retries=16):
        if self.reactor.loop is not None:
            raise MqError("the dispatcher has been initialised already")
        if not isinstance(plugins, Plugins):
            raise TypeError(f"Dispatcher needs Plugins, not {plugins!r}")
        if not 0 <= hold_timeout <= 1e9:
            raise ValueError(f"hold_timeout is in seconds, 0 for none, not {hold_timeout!r}")
        if not isinstance(max_retries, int) or not 0 <= max_retries < 2**31:
            raise ValueError(f"max_retries is a number of retries, not {max_retries!r}")
        if loop is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                raise MqError("no loop is running: make the dispatcher inside uvloop.run(), or give it loop=") from None
        self.plugins = plugins
        self.hold_timeout = hold_timeout
        self.max_retries = max_retries
        for name, spec in plugins.hooks.items():
            self.hooks[name] = new_hook(self, name, spec)
        self.open_control(loop)
        try:
            with plugins._lock:  # no change comes between
                self._prepare(plugins.snapshot).commit()
                plugins._attach(self)
        except BaseException:
            self.close_loop()
            raise
        if self.reactor.library.owner == "uvloop":
            try:
                self.ending = Ending(loop, self._loop_ends)
            except BaseException:
                self.close()
                raise

    # ------------------------------------------------------------------------------------------------------------ lifetime

    @property
    def loop(self):
        """The loop: a uvloop.Loop or a pyuv.Loop."""
        return self.reactor.loop

    def hook(self, str name not None):
        """The Hook of that name. Raises MqError when there is none, with the nearest name. Any thread."""
        if self.reactor.closed:
            raise DispatcherClosed(f"hook({name!r}): the dispatcher is closed")
        hook = self.hooks.get(name)
        if hook is None:
            near = difflib.get_close_matches(name, self.hooks, 1)
            raise MqError(f"there is no hook {name}" + (f"; did you mean {near[0]}?" if near else "")
                          + "; Plugins(hooks=[...]) declares hooks")
        return hook

    def cancel(self, Message message not None):
        """End the step that the message is in, at once: FAIL, with `Cancelled` in `message.error`, and `done` is called
        before this returns. Returns whether the message was in a step here.

        While a hook of the step is being called, the step ends when that hook returns. A late give-back is NotHeld. Raises
        MqError on another thread than the dispatcher's.
        """
        if not self.reactor.closed:
            self.reactor.check("cancel()")
        elif self.reactor.forked:
            return False
        return self.cancel_step(message)

    def stats(self):
        """The books: a `Stats`. Any thread; also after close()."""
        cdef list hooks = []
        cdef Hook hook
        cdef Context context
        contexts = [*self.contexts.values(), *self.retired]
        for hook in self.hooks.values():
            for context in contexts:
                if hook.name in context.tallies:
                    hooks.append(hook_stats(context, hook.name))
        for context in contexts:
            if "" in context.tallies:
                hooks.append(hook_stats(context, ""))
        return Stats(hooks=tuple(hooks), **self.balance())

    def held(self):
        """The messages that are held now: a list of `Held`; empty after close(). The dispatcher's thread."""
        cdef Message message
        cdef list messages
        if self.reactor.closed:
            return []
        self.reactor.check("held()")
        messages = self.all_held()
        cdef uint64_t now = self.reactor.state.uv.hrtime()
        return [Held(message, <str>message.entry.plugin, <str>message.entry.hook, (now - message.since) / 1e9)
                for message in messages]

    def close(self):
        """End all: every open step fails with DispatcherClosed and its `done` is called, then each plugin's
        `mq_context_cleanup`, then all timers, watchers and handles of libuv are closed. More than once is fine.

        The dispatcher's thread. Called in a hook, the step of that hook fails when it returns. In the child of a fork it only
        forgets: no callback, no cleanup. On pyuv it raises the KeyboardInterrupt or SystemExit that a plugin raised meanwhile.
        """
        cdef Context context
        if self.reactor.closed or self.reactor.loop is None:
            return
        if not self.reactor.forked:
            self.reactor.check("close()")
            self.reactor.closed = True
            self.reactor.thread = 0
            self.end_open_steps()
            for context in reversed([*self.contexts.values(), *self.retired]):
                clean_up(context)
            self.plugins._detach(self)
        self.close_loop()
        if self.ending is not None and not self.reactor.forked:
            self.ending.cancel()
            self.ending = None
        if self.reactor.escaped is not None:
            error, self.reactor.escaped = self.reactor.escaped, None
            raise error

    def _loop_ends(self):
        if self.reactor.thread != 0 and not self.reactor.loop.is_running():
            self.reactor.thread = PyThread_get_thread_ident()  # a loop that does not run may be closed on any thread
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        self.close()

    # ------------------------------------------------------------------------------------------------------------- plugins

    def _prepare(self, tuple plugins):
        """Rule 18, for Plugins: make ready for another list of plugins. Returns an object with `commit` and `discard`.

        From another thread nothing can be made ready: there `commit` leaves the change to the dispatcher's thread.
        """
        if self.reactor.thread != PyThread_get_thread_ident():
            return LaterChange(self)
        change = Change(self, plugins)
        change.prepare()
        return change

    cdef void drain(self) noexcept:
        Steps.drain(self)
        if self.sweep_due and self.reactor.thread != 0:
            self.sweep()

    cdef void sweep(self) noexcept:
        """Clean up the contexts of replaced plugins that no step can reach any more."""
        cdef Context context
        self.sweep_due = False
        gone = [context for context in self.retired if context.uses == 0]
        for context in gone:
            self.retired.remove(context)
            clean_up(context)


@cython.final
cdef class Change:
    """A change of a dispatcher's plugins, made ready."""
    cdef Dispatcher dispatcher
    cdef tuple plugins
    cdef dict contexts
    cdef list fresh
    cdef dict chains

    def __init__(self, dispatcher, plugins):
        self.dispatcher = dispatcher
        self.plugins = plugins
        self.contexts = {}
        self.fresh = []
        self.chains = {}

    def prepare(self):
        """Make the contexts that are new, and all chains. What raises leaves nothing behind."""
        cdef Context context
        cdef Hook hook
        try:
            for plugin in self.plugins:
                context = self.dispatcher.contexts.get(plugin)
                if context is None:
                    context = self.start(plugin)
                self.contexts[plugin] = context
            for hook in self.dispatcher.hooks.values():
                self.chains[hook.name] = new_chain(
                    self.dispatcher, hook,
                    [context for plugin, context in self.contexts.items() if hook.name in plugin.hooks])
        except BaseException:
            self.discard()
            raise

    def start(self, plugin):
        cdef Context context = new_context(self.dispatcher, plugin, self.dispatcher.hold_timeout)
        if self.dispatcher.reactor.library.owner != "uvloop":
            for name, function in plugin.hooks.items():
                if inspect.iscoroutinefunction(function):
                    raise PluginError(f"{name} is a coroutine function, which needs a uvloop loop; this one is pyuv's",
                                      plugin=plugin.name, path=plugin.path)
        plugin._acquire()
        if plugin.context_initialize is not None:
            try:
                plugin._call("mq_context_initialize", context)
            except BaseException:
                context.end()
                plugin._release()
                raise
        self.fresh.append(context)
        return context

    def commit(self):
        cdef Context context
        cdef Hook hook
        for plugin, context in self.dispatcher.contexts.items():
            if plugin not in self.contexts:
                context.retired = True
                self.dispatcher.retired.append(context)
        if self.dispatcher.native != NULL:
            native_side.disturb(self.dispatcher)
        self.dispatcher.contexts = self.contexts
        for hook in self.dispatcher.hooks.values():
            hook.chain = self.chains.pop(hook.name)
        self.dispatcher.sweep()

    def discard(self):
        self.chains.clear()
        while self.fresh:
            clean_up(self.fresh.pop())


@cython.final
cdef class LaterChange(Task):
    """A change of plugins that was made on another thread."""
    cdef Dispatcher dispatcher

    def __init__(self, dispatcher):
        self.dispatcher = dispatcher

    def commit(self):
        if not self.dispatcher.reactor.closed and not self.dispatcher.reactor.forked:
            self.dispatcher.reactor.post(self)

    def discard(self):
        """Nothing was made ready."""

    cdef void run_posted(self) noexcept:
        plugins = self.dispatcher.plugins
        try:
            with plugins._lock:  # by now there may be another list
                self.dispatcher._prepare(plugins.snapshot).commit()
        except BaseException as error:
            self.dispatcher.reactor.report(error, "a change of plugins, which left this dispatcher as it was")


# --------------------------------------------------------------------------------------------------------------- helpers

cdef Hook new_hook(Dispatcher dispatcher, str name, object spec):
    cdef Hook hook = Hook.__new__(Hook)
    if len(spec.args) > MOST_ARGUMENTS - 2:
        raise MqError(f"{name} has {len(spec.args)} extra arguments; a hook has at most {MOST_ARGUMENTS - 2}")
    hook.name = hook_names.setdefault(name, name)
    hook.spec = spec
    hook.dispatcher = dispatcher
    hook.extra = len(spec.args)
    return hook


cdef void clean_up(Context context) noexcept:
    """Rule 17: the end of a context."""
    plugin = context.plugin
    try:
        if plugin.context_cleanup is not None:
            plugin.context_cleanup(context)
    except BaseException as error:
        context.reactor.log(
            context.log, logging.ERROR, "plugin %s: mq_context_cleanup raised", (context.name,), error)
        if ends_program(error):
            context.reactor.raise_through_loop(error)
    context.end()
    plugin._release()


cdef object hook_stats(Context context, str hook):
    cdef Tally tally = context.tally_of(hook)
    cdef Counters *counters = &tally.counters
    seconds = counters.sampled_ns / 1e9 * counters.calls / counters.samples if counters.samples else 0.0
    return HookStats(
        context.name, hook, counters.calls, counters.holds, counters.continues, counters.completes, counters.retries,
        counters.failures, counters.timeouts, counters.abandoned, counters.refused, seconds, counters.longest_ns / 1e9,
        counters.held_ns / 1e9)


seal(Hook)
