"""The engine: chains of plugins, and the steps that messages take through them.

`Dispatcher.advance` is the heart: it calls one plugin after the other until one takes control or the step is decided. A
step that nobody holds allocates nothing and looks nothing up: a chain is a flat array, and the message carries its place in
it. A step that was suspended goes on in a turn, by `Dispatcher.resume`.
"""

import asyncio
import contextvars
import difflib
import inspect
import sys

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from ._context cimport Context, Hold, new_context
from ._loop cimport PyThread_get_thread_ident
from ._message cimport (
    HELD, IDLE, QUEUED, RUNNING, TO_CANCEL, TO_COMPLETE, TO_CONTINUE, TO_FAIL, TO_RETRY, UNDECIDED, Control, Counters,
    Entry, Message, Tally, Token)

from ._ending import Ending
from .errors import Abandoned, Cancelled, DispatcherClosed, MqError, PluginError, RetryLimit
from .plugins import Plugins
from .stats import Held, HookStats, Stats
from .verdicts import COMPLETE, CONTINUE, FAIL, RETRY

cdef extern from *:
    """
    static PyObject *mqcore_raised(void)
    {
    #if PY_VERSION_HEX >= 0x030C0000
        return PyErr_GetRaisedException();
    #else
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyErr_NormalizeException(&type, &value, &traceback);
        if (traceback != NULL)
            PyException_SetTraceback(value, traceback);
        Py_XDECREF(type);
        Py_XDECREF(traceback);
        return value;
    #endif
    }
    """
    object mqcore_raised()    # the exception that is set, which is cleared

cdef extern from "Python.h":
    PyObject *PyObject_Vectorcall(PyObject *, PyObject *const *, size_t, PyObject *) noexcept
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    PyObject *Py_None
    PyObject *Py_False
    bint PyCoro_CheckExact(object)

cdef enum:
    MOST_ARGUMENTS = 16      # of a hook, with context and message
    SAMPLE_EVERY = 64        # steps; one of them is timed

cdef bint EAGER_TASKS = sys.version_info >= (3, 12)
cdef dict hook_names = {}    # name -> name, kept for ever: entries and messages refer to them without counting


# ----------------------------------------------------------------------------------------------------------------- Chain

@cython.final
@cython.no_gc_clear  # __dealloc__ needs the contexts
cdef class Chain:

    def __dealloc__(self):
        cdef Context context
        for each in self.contexts or ():
            context = each
            context.uses -= 1
            if context.retired and context.uses == 0:
                (<Dispatcher>context.owner).sweep_due = True
                context.owner.wake()
        free(self.entries)


cdef Chain new_chain(Hook hook, list contexts):
    """The chain of `hook` over these contexts, which are in order."""
    cdef Chain chain = Chain.__new__(Chain)
    cdef Dispatcher dispatcher = hook.dispatcher
    cdef Context context
    cdef Tally tally
    cdef Entry *entry
    chain.hook = hook
    chain.entries = <Entry *>calloc(len(contexts) + 1, sizeof(Entry))
    if chain.entries == NULL:
        raise MemoryError()
    chain.functions = tuple([(<Context>each).plugin.hooks[hook.name] for each in contexts])
    chain.contexts = tuple(contexts)
    entry = chain.entries
    for function, each in zip(chain.functions, chain.contexts):
        context = each
        context.uses += 1
        entry.function = <PyObject *>function
        entry.context = <PyObject *>context
        entry.plugin = <PyObject *>context.name
        tally = context.tally_of(hook.name)
        entry.counters = &tally.counters
        entry.lane = dispatcher.lane_of(context.hold_timeout)
        entry.forgiving = context.forgiving
        entry.hook = <PyObject *>hook.name
        entry += 1
        chain.coroutines |= inspect.iscoroutinefunction(function)
    entry.hook = <PyObject *>hook.name
    return chain


# ------------------------------------------------------------------------------------------------------------------ Hook

@cython.final
cdef class Hook:
    """One hook on one dispatcher, from `dispatcher.hook(name)`: runs messages through the plugins that implement it.

    `name`, `spec` (its HookSpec), `dispatcher`. Belongs to the dispatcher's thread. A message is in one step at a time: to
    run it again before its step has ended is an MqError. What the extra arguments refer to is kept until the step ends.
    """

    def __call__(self, message, *args):
        """`await hook(message, *args)` gives the Outcome. uvloop only: on pyuv an MqError.

        Cancelling the awaiting task cancels the step. The awaiting refers strongly to the message.
        """
        if self.dispatcher.library.owner != "uvloop":
            raise MqError(f"await {self.name}(...) needs a uvloop loop; on pyuv use run() with done=")
        return outcome_of(self, message, args)

    def run(self, Message message not None, *args, done=None):
        """Run the step, now: an Outcome, or None when a plugin holds the message, and `done(message, outcome)` later.

        `done` is called once, from the loop, for each run that returned None, and never otherwise. What it raises goes to the
        loop's exception handler. Without it the outcome of a step that was held is nobody's.

        Raises MqError for a message that is in a step, on another thread, or in the child of a fork; DispatcherClosed after
        close(); TypeError for other arguments than the hook has. What plugins raise is in `message.error`.
        """
        return self.run_one(message, args, done)

    cpdef object run_one(self, Message message, tuple args, object done):
        """`run`, for callers in C: the same with `args` as a tuple and `done` as a callable or None."""
        self.check_call(args, done)
        if message.state != IDLE:
            raise MqError(f"{self.name}: {in_step(message)}")
        message.state = RUNNING
        return self.dispatcher.begin(self.chain, message, args, done)

    def run_many(self, messages, *args, done=None):
        """`run` for each of an iterable of messages: a list of what it returned, in order.

        Checks every message before it starts any: raises what `run` raises, also for a message that comes twice, and then
        nothing was started.
        """
        cdef Message message
        cdef list taken = list(messages)
        cdef list outcomes = []
        cdef Py_ssize_t started = 0
        self.check_call(args, done)
        try:
            for each in taken:
                if not isinstance(each, Message):
                    raise TypeError(f"{self.name}: run_many() needs messages, not {each!r}")
                message = each
                if message.state != IDLE:
                    raise MqError(f"{self.name}: message {started} of run_many(): {in_step(message)}")
                message.state = RUNNING
                started += 1
        except BaseException:
            for each in taken[:started]:
                (<Message>each).state = IDLE
            raise
        for each in taken:
            outcomes.append(self.dispatcher.begin(self.chain, <Message>each, args, done))
        return outcomes

    cdef int check_call(self, tuple args, object done) except -1:
        self.dispatcher.check(self.name)
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


async def outcome_of(Hook hook, Message message not None, tuple args):
    cdef Waiter waiter
    outcome = hook.run_one(message, args, None)
    if outcome is not None:
        return outcome
    waiter = Waiter.__new__(Waiter)
    waiter.future = hook.dispatcher.loop.create_future()
    message.done = waiter
    message.track()
    try:
        return await waiter.future
    finally:
        # The task was cancelled, or the coroutine closed. A collected one may be closed on any thread.
        if message.done is waiter and hook.dispatcher.thread == PyThread_get_thread_ident():
            hook.dispatcher.cancel(message)


@cython.final
cdef class Waiter:
    """The `done` of an awaited step."""
    cdef object future

    def __call__(self, message, outcome):
        if not self.future.done() and not self.future.get_loop().is_closed():
            self.future.set_result(outcome)


@cython.final
cdef class CoroutineEnd:
    """Called when the task of a coroutine hook has ended."""
    cdef Dispatcher dispatcher
    cdef Message message

    def __call__(self, task):
        if self.message.task is task:
            self.dispatcher.coroutine_ended(self.message, task)
        elif not task.cancelled():
            task.exception()  # the step ended without it: nobody is left to be told


# ------------------------------------------------------------------------------------------------------------ Dispatcher

cdef class Dispatcher(Control):
    """One worker's engine: a loop, the chains and the contexts; one per thread.

    `plugins`: Plugins; their changes reach the dispatcher, between steps. `loop`: a uvloop.Loop or pyuv.Loop; without it
    the running uvloop loop. `hold_timeout`: seconds that a plugin may hold a message, unless its config says otherwise;
    0: no limit. `max_retries`: how often one step may start again.

    Use it with `with` or `async with`, or `close()` it. A uvloop loop that ends closes it too; on pyuv you must. Until
    then it keeps itself alive. All methods but `stats`, and giving back, belong to the thread that runs the loop.

    Raises TypeError for another loop, MqError where no loop runs, PluginError when a plugin's `mq_context_initialize`
    fails or it has a coroutine hook on pyuv, ImportError where the loop's libuv cannot be used.
    """

    def __init__(self, plugins, loop=None, *, hold_timeout=30.0, max_retries=16):
        if self.loop is not None:
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
        self.hooks = {}
        self.contexts = {}
        self.retired = []
        self.jobs = []
        for name, spec in plugins.hooks.items():
            self.hooks[name] = new_hook(self, name, spec)
        self.open_control(loop)
        try:
            self._prepare(plugins.snapshot).commit()
            plugins._attach(self)
        except BaseException:
            self.close_loop()
            raise
        if self.library.owner == "uvloop":
            self.ending = Ending(loop, self._loop_ends)

    # ------------------------------------------------------------------------------------------------------------ steps

    cdef object begin(self, Chain chain, Message message, tuple args, object done):
        """The step of a message in state RUNNING: an outcome, or None."""
        cdef int verdict
        self.books.entered += 1
        self.books.running += 1
        message.retries = 0
        message.last_hook = chain.entries.hook
        if message.error is not None and message.verdict == UNDECIDED:
            message.error = None
        if args:
            message.args = args
        verdict = self.advance(message, chain, chain.entries)
        if verdict != UNDECIDED:
            return self.finish(message, verdict)
        message.suspended = True
        message.done = done
        if chain.coroutines and message.variables is None:
            message.variables = contextvars.copy_context()
        if done is not None or args or message.variables is not None:
            message.track()
        return None

    cdef void resume(self, Message message) noexcept:
        """Go on with a suspended step as message.verdict says. In a turn."""
        cdef Chain chain = <Chain>message.chain
        cdef int verdict = message.verdict
        message.verdict = UNDECIDED
        if verdict == TO_CONTINUE:
            verdict = self.advance(message, chain, message.entry + 1)
        elif verdict == TO_RETRY:
            chain = self.start_over(message, chain)
            verdict = TO_FAIL if chain is None else self.advance(message, chain, chain.entries)
        if verdict != UNDECIDED:
            self.conclude(message, self.finish(message, verdict))

    cdef int advance(self, Message message, Chain chain, Entry *entry) noexcept:
        """Rules 1 to 5: call plugins, from `entry` on. Returns how the step ends, or UNDECIDED when it is suspended."""
        cdef PyObject *space[MOST_ARGUMENTS + 1]
        cdef PyObject **arguments = space + 1  # a bound method uses the place before the first
        cdef size_t count = 2
        cdef PyObject *result
        cdef Counters *counters
        cdef uint64_t start = 0
        cdef int verdict
        arguments[1] = <PyObject *>message
        if message.args is not None:
            for argument in message.args:
                arguments[count] = <PyObject *>argument  # message.args keeps it
                count += 1
        cdef bint timed = self.until_sample == 0
        self.until_sample = SAMPLE_EVERY if timed else self.until_sample - 1
        while True:
            if self.closed or message.verdict == TO_CANCEL:
                verdict = self.judge(message, None)
                break
            if entry.function == NULL:
                return TO_CONTINUE
            message.entry = entry
            arguments[0] = entry.context
            counters = entry.counters
            counters.calls += 1
            if timed:
                start = self.state.uv.hrtime()
            result = PyObject_Vectorcall(entry.function, arguments, count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
            if timed:
                add_sample(counters, self.state.uv.hrtime() - start)
            if (result == Py_False or result == Py_None) and message.verdict == UNDECIDED and message.token == NULL:
                Py_DECREF(<object>result)
                entry += 1
                continue
            if result == NULL:
                verdict = self.hook_raised(message, mqcore_raised())
            else:
                value = <object>result
                Py_DECREF(value)
                verdict = self.judge(message, value)
                value = None
            if verdict == TO_CONTINUE:
                entry += 1
            elif verdict == TO_RETRY:
                chain = self.start_over(message, chain)
                if chain is None:
                    return TO_FAIL
                entry = chain.entries
            else:
                break
        if verdict == UNDECIDED:
            message.chain = chain
        return verdict

    cdef int judge(self, Message message, object value) noexcept:
        """What follows from what a hook returned."""
        cdef int early = message.verdict
        if self.closed:
            message.fail(closed_in_step(message))
            return TO_FAIL
        if early == TO_CANCEL:
            return TO_CANCEL
        if asyncio.iscoroutine(value):
            return self.start_coroutine(message, value)
        cdef int verdict = self.settle(message, value, early)
        if verdict == UNDECIDED:
            self.begin_hold(message)
            if early != UNDECIDED:  # rule 7: a hold that is over at once
                self.release(message, early)
        else:
            message.let_go()
        return verdict

    cdef int settle(self, Message message, object value, int early) noexcept:
        """Rule 7: the verdict that follows from what a hook, or its coroutine, returned and what it gave back before.

        UNDECIDED when it said that it has the message.
        """
        cdef int verdict
        message.verdict = UNDECIDED
        if value is True:
            return UNDECIDED
        if value is None or value is False or value is CONTINUE:
            verdict = TO_CONTINUE
        elif value is COMPLETE:
            verdict = TO_COMPLETE
        elif value is RETRY:
            verdict = TO_RETRY
        elif message.token != NULL and value is <object>message.token:
            message.by_token = True
            return UNDECIDED
        else:
            return self.hook_raised(message, TypeError(
                f"plugin {<str>message.entry.plugin} returned {describe(value)} from {<str>message.entry.hook}; a hook "
                f"returns False, None, CONTINUE, COMPLETE, RETRY, True, or the Hold of this message"))
        if early == TO_FAIL:
            return TO_FAIL
        if early == UNDECIDED:
            if verdict == TO_COMPLETE:
                message.entry.counters.completes += 1
            elif verdict == TO_RETRY:
                message.entry.counters.retries += 1
        elif early != verdict:
            return self.hook_raised(message, MqError(
                f"plugin {<str>message.entry.plugin} gave the message back in {<str>message.entry.hook} "
                f"({spell(early)}), but then returned {describe(value)}; return True after giving back"))
        return verdict

    cdef int hook_raised(self, Message message, object error) noexcept:
        """Rule 13: a hook raised, or returned what it may not."""
        cdef Context context = <Context>message.entry.context
        context.failure(error, <str>message.entry.hook)
        if not isinstance(error, Exception) and not isinstance(error, asyncio.CancelledError):
            self.escape(error)
        elif message.entry.forgiving and isinstance(error, Exception) and not self.closed and message.verdict != TO_CANCEL:
            message.let_go()
            message.verdict = UNDECIDED
            return TO_CONTINUE
        if message.verdict == TO_CANCEL:
            return TO_CANCEL
        message.fail(error)
        return TO_FAIL

    cdef Chain start_over(self, Message message, Chain chain):
        """Rules 5 and 11: the chain as it is now, or None when there were too many retries."""
        if message.retries >= self.max_retries:
            message.fail(RetryLimit(
                f"plugin {<str>message.entry.plugin} asked for retry {message.retries + 1} of one step of "
                f"{<str>message.entry.hook}; max_retries is {self.max_retries}"))
            return None
        message.retries += 1
        return chain.hook.chain

    cdef object finish(self, Message message, int verdict):
        """End the step. RUNNING -> IDLE."""
        self.books.running -= 1
        if verdict == TO_CONTINUE:
            self.books.continued += 1
            outcome = CONTINUE
        elif verdict == TO_COMPLETE:
            self.books.completed += 1
            outcome = COMPLETE
        elif verdict == TO_CANCEL:
            self.books.cancelled += 1
            outcome = FAIL
        else:
            self.books.failed += 1
            outcome = FAIL
            if message.entry != NULL:
                message.entry.counters.failures += 1
            if message.error is None:
                message.fail(Abandoned(
                    f"plugin {<str>message.entry.plugin} took control of the message in {<str>message.entry.hook} and dropped "
                    f"all that it could have given it back with"))
        message.let_go()
        message.state = IDLE
        message.verdict = UNDECIDED
        message.entry = NULL
        if message.args is not None:
            message.args = None
        if message.chain is not None:
            message.chain = None
            message.variables = None
        return outcome

    cdef void conclude(self, Message message, object outcome) noexcept:
        """Rule 15: tell `done` how a suspended step ended."""
        done = message.done
        message.done = None
        if message.suspended:
            message.suspended = False
            if done is not None:
                try:
                    done(message, outcome)
                except BaseException as error:
                    self.raised(error, f"done of {<str>message.last_hook}")

    # ---------------------------------------------------------------------------------------------------- coroutine hooks

    cdef int start_coroutine(self, Message message, object coroutine) noexcept:
        """Run the coroutine of a hook in a task, which has control until it returns."""
        cdef CoroutineEnd end
        try:
            if self.library.owner != "uvloop":
                coroutine.close()
                raise MqError("the hook returned a coroutine, which needs a uvloop loop")
            variables = contextvars.copy_context() if message.variables is None else message.variables.copy()
            options = {"eager_start": True} if EAGER_TASKS else {}
            task = asyncio.Task(coroutine, loop=self.loop, name=f"{<str>message.entry.plugin}:{<str>message.entry.hook}",
                                context=variables, **options)
            if task.done():
                return self.judge(message, not_again(task.result()))
            if self.closed or message.verdict == TO_CANCEL:
                task.cancel()
                task.add_done_callback(ignore, context=variables)
                return self.judge(message, None)
            message.task = task
            message.track()
            self.begin_hold(message)
            end = CoroutineEnd.__new__(CoroutineEnd)
            end.dispatcher = self
            end.message = message
            task.add_done_callback(end, context=variables)
            return UNDECIDED
        except BaseException as error:
            return self.hook_raised(message, error)

    cdef void coroutine_ended(self, Message message, object task) noexcept:
        """The coroutine of a hook, which has held the message, returned or raised: go on in a turn."""
        cdef int early = message.verdict
        cdef int verdict
        message.task = None
        try:
            verdict = self.settle(message, not_again(task.result()), early)
        except BaseException as error:
            verdict = self.hook_raised(message, error)
        if verdict == UNDECIDED:
            verdict = early
        if verdict != UNDECIDED:
            self.release(message, verdict)
        else:
            self.held_weakly(message)

    # ------------------------------------------------------------------------------------------------------------ lifetime

    def hook(self, str name not None):
        """The Hook of that name. Raises MqError when there is none, with the nearest name. Any thread."""
        hook = self.hooks.get(name) if self.hooks is not None else None
        if hook is None:
            near = difflib.get_close_matches(name, self.hooks or (), 1)
            raise MqError(f"there is no hook {name}" + (f"; did you mean {near[0]}?" if near else "")
                          + "; Plugins(hooks=[...]) declares hooks")
        return hook

    def cancel(self, Message message not None):
        """End the step that the message is in, at once: FAIL, with `Cancelled` in `message.error`, and `done` is called
        before this returns. Returns whether the message was in a step here.

        While a hook of the step is being called, the step ends when that hook returns. A late give-back is NotHeld. Raises
        MqError on another thread than the dispatcher's.
        """
        if not self.closed:
            self.check("cancel()")
        if message.state == IDLE or message.entry != NULL and (<Context>message.entry.context).owner is not self:
            return False
        error = Cancelled(f"the step of {'' if message.last_hook == NULL else <str>message.last_hook} was cancelled")
        if message.state == RUNNING:
            message.fail(error)
            message.verdict = TO_CANCEL
            return True
        if message.state == HELD:
            self.end_hold(message)
        else:
            self.unlink_queued(message)
        message.fail(error)
        self.conclude(message, self.finish(message, TO_CANCEL))
        self.wake()  # so that an idle dispatcher comes to rest
        return True

    def stats(self):
        """The books: a `Stats`. Any thread; also after close()."""
        cdef list hooks = []
        cdef Hook hook
        cdef Context context
        contexts = [*(self.contexts or {}).values(), *(self.retired or ())]
        for hook in (self.hooks or {}).values():
            for context in contexts:
                if hook.name in context.tallies:
                    hooks.append(hook_stats(context, hook.name))
        for context in contexts:
            if "" in context.tallies:
                hooks.append(hook_stats(context, ""))
        return Stats(self.books.entered, self.books.continued, self.books.completed, self.books.failed, self.books.cancelled, self.books.held, self.books.running,
                     tuple(hooks))

    def held(self):
        """The messages that are held now: a list of `Held`. The dispatcher's thread."""
        cdef Message message
        cdef list messages
        if self.closed:
            return []
        self.check("held()")
        messages = self.all_held()
        cdef uint64_t now = self.state.uv.hrtime()
        return [Held(message, <str>message.entry.plugin, <str>message.entry.hook, (now - message.since) / 1e9)
                for message in messages]

    def close(self):
        """End all: every open step fails with DispatcherClosed and its `done` is called, then each plugin's
        `mq_context_cleanup`, then all timers, watchers and handles of libuv are closed. More than once is fine.

        The dispatcher's thread, or any when a uvloop loop is not running. Called in a hook, the step of that hook fails when
        it returns. In the child of a fork it only forgets: no callback, no cleanup. On pyuv it raises the KeyboardInterrupt or
        SystemExit that a plugin raised meanwhile.
        """
        cdef Context context
        if self.closed or self.loop is None:
            return
        if not self.forked:
            if self.library.owner == "uvloop" and not self.loop.is_running():
                self.thread = PyThread_get_thread_ident()
            self.check("close()")
            self.closed = True
            self.thread = 0
            self.end_open_steps()
            for context in reversed([*self.contexts.values(), *self.retired]):
                clean_up(context)
            self.plugins._detach(self)
        self.close_loop()
        if self.ending is not None and not self.forked:
            self.ending.cancel()
            self.ending = None
        if self.escaped is not None:
            error, self.escaped = self.escaped, None
            raise error

    def _loop_ends(self):
        self.close()

    cdef void end_open_steps(self) noexcept:
        cdef Message message
        for message in self.all_held():
            if message.state == HELD:  # `done` of another may have dropped it
                self.end_hold(message)
                message.fail(closed_in_step(message))
                self.conclude(message, self.finish(message, TO_FAIL))
        while self.first_queued != NULL:
            message = <Message>self.first_queued
            self.unlink_queued(message)
            message.fail(closed_in_step(message))
            self.conclude(message, self.finish(message, TO_FAIL))

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
        if self.thread != PyThread_get_thread_ident():
            return LaterChange(self, plugins)
        change = Change(self, plugins)
        change.prepare()
        return change

    def _change_now(self, plugins):
        try:
            self._prepare(plugins).commit()
        except Exception as error:
            self.raised(error, "the reload of plugins, which left this dispatcher as it was")

    cdef bint drain(self) noexcept:
        while self.jobs:
            try:
                self.jobs.pop(0)()
            except BaseException as error:
                self.raised(error, "a change of plugins")
        if self.sweep_due:
            self.sweep()
        return Control.drain(self)

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
                    hook, [context for plugin, context in self.contexts.items() if hook.name in plugin.hooks])
        except BaseException:
            self.discard()
            raise

    def start(self, plugin):
        cdef Context context = new_context(self.dispatcher, plugin, self.dispatcher.hold_timeout)
        if self.dispatcher.library.owner != "uvloop":
            for name, function in plugin.hooks.items():
                if inspect.iscoroutinefunction(function):
                    raise PluginError(f"{name} is a coroutine function, which needs a uvloop loop; this one is pyuv's",
                                      plugin=plugin.name, path=plugin.path)
        plugin._acquire()
        if plugin.context_initialize is not None:
            try:
                plugin.context_initialize(context)
            except BaseException as error:
                context.end()
                plugin._release()
                if not isinstance(error, Exception):
                    raise
                raise PluginError(f"mq_context_initialize raised {error!r}", plugin=plugin.name, path=plugin.path) from error
        self.fresh.append(context)
        return context

    def commit(self):
        cdef Context context
        cdef Hook hook
        for plugin, context in self.dispatcher.contexts.items():
            if plugin not in self.contexts:
                context.retired = True
                self.dispatcher.retired.append(context)
        self.dispatcher.contexts = self.contexts
        for hook in self.dispatcher.hooks.values():
            hook.chain = self.chains.pop(hook.name)
        self.dispatcher.sweep()

    def discard(self):
        self.chains.clear()
        while self.fresh:
            clean_up(self.fresh.pop())


class LaterChange:
    """A change of plugins that was made on another thread."""

    def __init__(self, dispatcher, plugins):
        self.dispatcher = dispatcher
        self.plugins = plugins

    def commit(self):
        cdef Dispatcher dispatcher = self.dispatcher
        if not dispatcher.closed and not dispatcher.forked:
            dispatcher.jobs.append(lambda: dispatcher._change_now(self.plugins))
            dispatcher.wake()

    def discard(self):
        """Nothing was made ready."""


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
        context.log.error("plugin %s: mq_context_cleanup raised", context.name, exc_info=error)
        if not isinstance(error, Exception):
            context.owner.escape(error)
    context.end()
    plugin._release()


cdef inline void add_sample(Counters *counters, uint64_t ns) noexcept:
    counters.samples += 1
    counters.sampled_ns += ns
    if ns > counters.longest_ns:
        counters.longest_ns = ns


cdef object hook_stats(Context context, str hook):
    cdef Tally tally = context.tally_of(hook)
    cdef Counters *counters = &tally.counters
    seconds = counters.sampled_ns / 1e9 * counters.calls / counters.samples if counters.samples else 0.0
    return HookStats(
        context.name, hook, counters.calls, counters.holds, counters.continues, counters.completes, counters.retries,
        counters.failures, counters.timeouts, counters.abandoned, counters.refused, seconds, counters.longest_ns / 1e9,
        counters.held_ns / 1e9)


cdef object closed_in_step(Message message):
    return DispatcherClosed(f"the dispatcher was closed while the message was in a step of {<str>message.last_hook}")


cdef object not_again(object value):
    """What a coroutine returned, unless that is a coroutine."""
    if asyncio.iscoroutine(value):
        value.close()
    return value


cdef str describe(object value):
    if isinstance(value, Hold):
        return "a Hold that is over or belongs to another message"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


cdef str spell(int verdict):
    return {TO_CONTINUE: "continue", TO_COMPLETE: "complete", TO_RETRY: "retry"}.get(verdict, "fail")


def ignore(task):
    """Look at the exception of a task that was cancelled with its step, so that asyncio does not report it."""
    if not task.cancelled():
        task.exception()
