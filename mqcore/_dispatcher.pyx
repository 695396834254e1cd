"""`Dispatcher`: one worker's engine, made of its parts: the reactor, the hold table, the runner and the active plugins."""

import asyncio

cimport cython
from libc.stdint cimport uint64_t

from ._changes cimport new_active_plugins, sweep_phase
from ._dispatch cimport cancel_step, end_all_steps, new_runner, resume_phase, timeout_phase
from ._hook cimport new_hook
from ._held cimport begin_scan, oldest, oldest_of_each, scan
from ._holds cimport has_pending, new_hold_table, stop_when_idle
from ._message cimport Message, NativeSide, StepCounts
from .loop._attach cimport attach, close, stop_all
from .loop._watchdog cimport new_watchdog
from .loop._watchdog_thread cimport add_caller
from .loop._reactor cimport RESUME_PHASE, SWEEP_PHASE, TIMEOUT_PHASE, PyThread_get_thread_ident, new_reactor

from ._misuse import describe
from ._plugin_set import PluginSet
from .errors import DispatcherClosed, MqError
from .hooks import close_to
from .loop._ending import Ending
from .stats import Held, Stats
from .watchdog import watchdog_of

cdef extern from *:
    """
    #if defined(__SANITIZE_THREAD__)
    #define MQCORE_BUILD "threads"
    #elif defined(__SANITIZE_ADDRESS__)
    #define MQCORE_BUILD "sanitize"
    #elif defined(MQCORE_DEBUG)
    #define MQCORE_BUILD "debug"
    #else
    #define MQCORE_BUILD "release"
    #endif
    """
    const char *MQCORE_BUILD

BUILD = MQCORE_BUILD.decode()  # of which kind, as setup.py has them


@cython.no_gc_clear  # messages, holds and contexts need what it is made of
cdef class Dispatcher:
    """One worker's engine: a loop, the chains and the contexts; one per thread.

    `plugins`: Plugins; their changes reach the dispatcher, between steps. `loop`: a uvloop.Loop or pyuv.Loop; without it
    the running uvloop loop. `hold_timeout`: seconds that a plugin may hold a message, unless its config says otherwise;
    0: no limit. `max_retries`: how often one step may start again. `watchdog`: seconds; what keeps the loop for longer is told
    of while it does (a `Watchdog` says more about how); None or 0: it is not watched.

    Use it with `with` or `async with`, or `close()` it. A uvloop loop that ends closes it too; on pyuv you must. Until
    then it keeps itself alive. All methods but `stats`, and giving back, belong to the thread that runs the loop.

    A coroutine hook runs in a task of its own, in a copy of the context variables of `run`. (Where a retry brought a chain
    with coroutine hooks into a step that began without any, of those of the loop.)

    Raises TypeError for another loop, MqError where no loop runs or a hook has more than 14 extra arguments, ValueError for
    a timeout or number of retries out of range, PluginError when a plugin's `mq_context_initialize` fails or it has a
    coroutine hook on pyuv, ImportError where the loop's libuv cannot be used.
    """

    def __cinit__(self):
        self.reactor = new_reactor()
        self.holds = new_hold_table(self.reactor)
        self.runner = new_runner(self.reactor, self.holds)
        self.active = new_active_plugins(self.holds)

    def __init__(self, plugins, loop=None, *, hold_timeout=30.0, max_retries=16, watchdog=None):
        cdef double seconds
        try:
            seconds = hold_timeout
        except TypeError:
            raise TypeError(f"hold_timeout is a number of seconds, 0 for none, not {hold_timeout!r}") from None
        cdef unsigned int retries = as_retries(max_retries)
        order = watchdog_of(watchdog)
        if self.life != NEW:
            raise MqError("the dispatcher has been initialised already")
        if not isinstance(plugins, PluginSet):
            raise TypeError(f"Dispatcher needs Plugins, not {describe(plugins)}")
        if not 0 <= seconds <= 1e9:
            raise ValueError(f"hold_timeout is in seconds, 0 for none, not {hold_timeout!r}")
        if loop is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                raise MqError("no loop is running: make the dispatcher inside uvloop.run(), or give it loop=") from None
        self.runner.max_retries = retries
        self.active.plugins = plugins
        self.active.hold_timeout = seconds
        for name in plugins.hooks:
            self.active.hooks[name] = new_hook(self.runner, self, name, plugins.hooks[name])
        attach(self.reactor, loop, self)
        self.life = OPENING
        try:
            self.open(order)
        except BaseException:
            self.end()
            raise
        self.life = OPEN

    cdef int open(self, object order) except -1:
        self.holds.open()
        if order is not None:
            self.watchdog = new_watchdog(self.reactor)
            self.watchdog.kept = (self.active.rows, self.runner)
            self.watchdog.start(order)
            add_caller(&self.watchdog.state, &self.runner.done)
        self.reactor.set_phase(TIMEOUT_PHASE, timeout_phase, <void *>self.runner)
        self.reactor.set_phase(RESUME_PHASE, resume_phase, <void *>self.runner)
        self.reactor.set_phase(SWEEP_PHASE, sweep_phase, <void *>self.active)
        self.reactor.set_idle(has_pending, stop_when_idle, &self.holds.lists)
        with self.active.plugins._attach(self) as plugins:  # a change that comes from now on announces itself
            self.active.take_over(plugins)
        if self.reactor.library.owner == "uvloop":
            self.ending = Ending(self.reactor.loop, self._loop_ends)
        return 0

    # ------------------------------------------------------------------------------------------------------------ lifetime

    @property
    def plugins(self):
        """The Plugins that it was made with; None before that."""
        return self.active.plugins

    @property
    def loop(self):
        """The uvloop.Loop or pyuv.Loop; None before it was made."""
        return self.reactor.loop

    @property
    def libuv(self):
        """The version of the loop's libuv; None before it was made."""
        return None if self.reactor.library is None else self.reactor.library.version

    def hook(self, str name not None):
        """The Hook of that name. Raises MqError when there is none, with the nearest name. Any thread."""
        if self.runner.closed:
            raise DispatcherClosed(f"hook({name!r}): the dispatcher is closed")
        if self.life == NEW:
            raise MqError(f"hook({name!r}): the dispatcher has not been initialised")
        hook = self.active.hooks.get(name)
        if hook is None:
            near = close_to(name, self.active.hooks)
            raise MqError(f"there is no hook {name}" + (f"; did you mean {near}?" if near else "")
                          + "; Plugins(hooks=[...]) declares hooks")
        return hook

    def cancel(self, Message message not None):
        """End the step that the message is in, at once: FAIL, with `Cancelled` in `message.error`, and `done` is called
        before this returns. Returns whether the message was in a step here.

        While a hook of the step is being called, the step ends when that hook returns. A late give-back is NotHeld. Raises
        MqError on another thread than the dispatcher's.
        """
        if self.life == NEW:
            return False
        if not self.runner.closed:
            self.reactor.check("cancel()")
        elif self.reactor.forked:
            return False
        return cancel_step(self.runner, message)

    def stats(self):
        """The books: a `Stats`. Any thread; also after close()."""
        return Stats(hooks=self.active.stats(), **self.counts())

    cpdef StepCounts counts(self):
        """The books without the plugins' rows, in C a struct: entered, continued, completed, failed, cancelled, held, running.
        Any thread, with the GIL."""
        return self.holds.snapshot()

    def lag(self):
        """What the watchdog has seen of the loop: a `Lag`; None without a watchdog. Any thread; also after close()."""
        return None if self.watchdog is None else self.watchdog.lag()

    def _report_as(self, *, bint json, bint warnings):
        """How the watchdog's own lines are from now on, which it writes without the log: JSON or text, and none that is no more
        than a warning."""
        if self.watchdog is not None:
            self.watchdog.report_as(json, warnings)

    def _run_reload(self, function not None):
        """Call `function`, which loads plugins anew, and return what it does: for the watchdog it is a reload that has the loop
        meanwhile. The dispatcher's thread."""
        return function() if self.watchdog is None else self.watchdog.run_reload(function)

    def held(self, limit=None, plugin=None, hook=None):
        """The messages that are held now, oldest first: a list of `Held`; empty after close(). The dispatcher's thread.

        `limit`: at most so many. `plugin`, `hook`: those of one plugin or hook only. Without these it takes as long as the list
        is, whatever else is held; with them, at most as long as all that is held.
        """
        cdef Py_ssize_t most = -1 if limit is None else limit
        if limit is not None and most < 0:
            raise ValueError(f"limit is a number of messages, or None for all, not {limit!r}")
        if self.runner.closed or self.life == NEW:
            return []
        self.reactor.check("held()")
        return as_held(oldest(self.holds, most, plugin, hook), self.reactor.state.uv.hrtime())

    def _begin_scan(self, double older=0.0, Py_ssize_t most=-1):
        """Begin to look at what is held for so many seconds and longer, in portions; the `most` oldest that a `_scan` wants, of
        those that share a `hold_timeout`, are enough. Whoever is at it already has to begin again. The dispatcher's thread."""
        cdef uint64_t now, least
        if not 0 <= older <= 1e9:
            raise ValueError(f"older is in seconds, not {older!r}")
        if self.life != NEW and not self.runner.closed:
            self.reactor.check("_begin_scan()")
            now = self.scan_began = self.reactor.state.uv.hrtime()
            least = <uint64_t>(older * 1e9)
            begin_scan(self.holds, now - least if least < now else 0, most)

    def _scan(self, Py_ssize_t steps, str plugin=None, match=None):
        """Look at the next `steps` messages: what `held` has of those that the plugin holds, and `match` is true for. Those
        that share a `hold_timeout` are in order of their age, which is as of when the scan began. None when all have been
        looked at."""
        if not 1 <= steps <= 1 << 20:
            raise ValueError(f"a portion is of 1 to {1 << 20} messages, not of {steps}")
        if self.runner.closed or self.life == NEW:
            return None
        self.reactor.check("_scan()")
        rows = scan(self.holds, steps, plugin, match)
        return None if rows is None else as_held(rows, self.scan_began)

    def oldest_held(self, Py_ssize_t among=1000):
        """How long the oldest message that is held now is held, in seconds, by (plugin, hook). Only the oldest `among` messages
        are looked at, so it takes no longer however many are held; of whoever holds none of them nothing is said. The
        dispatcher's thread; empty after close()."""
        if among < 0:
            raise ValueError(f"among is a number of messages, not {among}")
        if self.runner.closed or self.life == NEW:
            return {}
        self.reactor.check("oldest_held()")
        cdef dict found = oldest_of_each(self.holds, among)
        cdef uint64_t now = self.reactor.state.uv.hrtime()
        for key, since in list(found.items()):
            found[key] = (now - <uint64_t>since) / 1e9
        return found

    def close(self):
        """End all: every open step fails with DispatcherClosed and its `done` is called, then each plugin's
        `mq_context_cleanup`, then all timers, watchers and handles of libuv are closed. More than once is fine.

        The dispatcher's thread. Called in a hook, the step of that hook fails when it returns. In the child of a fork it only
        forgets: no callback, no cleanup. On pyuv it raises the KeyboardInterrupt or SystemExit that a plugin raised meanwhile.
        """
        if self.life == NEW or self.life == ENDED:
            return
        if self.life == OPENING:
            raise MqError("close(): the dispatcher is still being made; raise an error to stop that")
        if not self.runner.closed and not self.reactor.forked:
            self.reactor.check("close()")
        self.end()
        if self.reactor.pending_exit is not None:
            error, self.reactor.pending_exit = self.reactor.pending_exit, None
            raise error

    cdef int end(self) except -1:
        """Each part may be ended more than once: where one is interrupted, another call goes on."""
        if self.ending_now:
            return 0  # called by what it calls
        self.ending_now = True
        try:
            self.runner.closed = True
            self.reactor.closed = True
            self.reactor.thread = 0
            if self.watchdog is not None:
                self.watchdog.stop()
            if not self.reactor.forked:
                end_all_steps(self.runner)
                self.active.close()
                if self.holds.lists.native != NULL:
                    (<NativeSide>self.holds.lists.native).close()
                stop_all(self.reactor)
            self.holds.close()
            close(self.reactor)
            if not self.reactor.forked:
                if self.active.plugins is not None:
                    self.active.plugins._detach(self)
                ending, self.ending = self.ending, None
                if ending is not None:
                    ending.cancel()
            self.life = ENDED
        finally:
            self.ending_now = False
        return 0

    def _loop_ends(self):
        if self.life == OPENING:
            return  # what made the dispatcher fails, and closes it
        if self.reactor.thread != 0 and not self.reactor.loop.is_running():
            self.reactor.thread = PyThread_get_thread_ident()  # a loop that does not run may be closed on any thread
        self.close()

    def _prepare(self, plugins not None):
        """Rule 18, for Plugins: make ready for another list of plugins. Returns an object with `commit` and `discard`."""
        return self.active.prepare(plugins)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        self.close()


cdef list as_held(list rows, uint64_t now):
    cdef list found = []
    for message, by, where, since in rows:
        found.append(Held(message, by, where, (now - <uint64_t>since) / 1e9))
    return found


cdef unsigned int as_retries(object value) except? 0:
    cdef long long number = -1
    if isinstance(value, int):
        try:
            number = value
        except OverflowError:
            pass
    if not 0 <= number < 2**31:
        raise ValueError(f"max_retries is a number of retries, not {value!r}")
    return <unsigned int>number
