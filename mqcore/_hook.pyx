"""`Hook`: what a host runs messages through; and awaiting a step."""

cimport cython
from cpython.object cimport PyObject

from ._chain cimport Chain, Route, open_route
from ._dispatch cimport MOST_ARGUMENTS, Runner, begin, begin_all, cancel_step
from ._message cimport HELD, IDLE, RUNNING, TAKEN, UNDECIDED, Message, move
from .loop._reactor cimport Caller, PyThread_get_thread_ident
from ._trace cimport Trace, new_ended
from .loop._seal cimport seal
from .loop._state cimport set_caller

from ._misuse import describe
from ._waiting import checked_outcome_of, nobody_waits_yet, outcome_of
from .errors import MqError
from .verdicts import CONTINUE

cdef extern from "Python.h":
    PyObject *Py_None
    bint PyCallable_Check(object)
    list repeat "PySequence_Repeat"(list, Py_ssize_t)  # since CPython 3.12 it counts all references in one go
    Py_ssize_t size_of "PyTuple_GET_SIZE"(tuple) noexcept
    PyObject *item_of "PyTuple_GET_ITEM"(tuple, Py_ssize_t) noexcept  # borrowed

# In C, where no module's dict is searched for them.
cdef object OUTCOME_CONTINUE = CONTINUE
cdef object AWAITED = nobody_waits_yet


@cython.final
@cython.no_gc_clear
cdef class Hook(Route):
    """One hook on one dispatcher, from `dispatcher.hook(name)`: runs messages through the plugins that implement it.

    `name`, `spec` (its HookSpec), `dispatcher`. Belongs to the dispatcher's thread. A message is in one step at a time: to
    run it again before its step has ended is an MqError. What the extra arguments refer to is kept until the step ends.
    """

    def __call__(self, Message message not None, *args):
        """`await hook(message, *args)` gives the Outcome. uvloop only: on pyuv an MqError.

        Cancelling the awaiting task cancels the step. The awaiting refers strongly to the message.
        """
        self.check_awaitable()
        return outcome_of(self, message, args)

    def checked(self, Message message not None, *args):
        """As `await hook(message, *args)`, but where that gives FAIL this raises `message.error`: if that is an Exception, and
        no StopIteration; else an MqError from it."""
        self.check_awaitable()
        return checked_outcome_of(self, message, args)

    cdef int check_awaitable(self) except -1:
        if self.runner.reactor.library.owner != "uvloop":
            raise MqError(f"await {self.name}(...) needs a uvloop loop; on pyuv use run() with done=")
        return 0

    def _wait_for(self, Message message not None):
        """A Waiter for the step that `_begin_awaited` has begun; None when it has ended already."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.runner = self.runner
        waiter.future = self.runner.reactor.loop.create_future()
        if message.done is not AWAITED:
            return None
        message.done = waiter
        message.track()
        return waiter

    def _begin_awaited(self, Message message not None, tuple args not None):
        """`run` for a step that is going to be awaited."""
        return self.run_one(message, args, AWAITED)

    def run(self, Message message not None, *args, done=None):
        """Run the step, now: an Outcome, or None when a plugin holds the message, and `done(message, outcome)` later.

        `done` is called once for each run that returned None, in a tick of the loop or before `cancel()` or `close()` returns,
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
        chain = self.chain  # the step's own, as plugins may change meanwhile
        variables = variables_for(chain)  # first: memory is made, by which anybody's code may run
        self.check_call(args, done)
        if message.state != IDLE:
            raise MqError(f"{self.name}: {in_step(message)}")
        move(&self.holds.lists, message, IDLE, RUNNING)
        cdef Caller *before = self.runner.calling
        cdef PyObject *outcome = begin(self.runner, chain, message, args, done, variables)
        set_caller(&self.runner.calling, before)
        return <object>outcome

    def run_traced(self, Message message not None, Trace trace not None, *args, done=None):
        """As `run`, and what each plugin does in the step is noted in `trace`, a new one. All else is the same; it takes about
        a microsecond more for each plugin."""
        cdef Caller *before
        cdef PyObject *outcome
        cdef Chain chain
        self.check_run(message, args, done)
        if trace.runner is not None:
            raise MqError(f"{self.name}: the trace has been used: each step needs a new one")
        try:
            trace.open(self.runner, self, message)
            chain = trace.chain
            variables = variables_for(chain)
            ended = new_ended(trace, done)
            self.check_run(message, args, done)  # memory was made, by which anybody's code may have run
        except BaseException:
            trace.close()
            raise
        move(&self.holds.lists, message, IDLE, RUNNING)
        before = self.runner.calling
        outcome = begin(self.runner, chain, message, args, ended, variables)
        set_caller(&self.runner.calling, before)
        if outcome != Py_None:
            trace.end(message, <object>outcome)
        return <object>outcome

    cdef int check_run(self, Message message, tuple args, object done) except -1:
        self.check_call(args, done)
        if message.state != IDLE:
            raise MqError(f"{self.name}: {in_step(message)}")
        return 0

    def run_many(self, messages, *args, done=None):
        """`run` for each of an iterable of messages: a list of what it returned, in order.

        Checks every message before it starts any: raises what `run` raises, also for a message that comes twice, and then
        nothing was started.
        """
        cdef tuple taken = tuple(messages)
        cdef list outcomes = repeat([OUTCOME_CONTINUE], len(taken))
        variables = variables_for(self.chain)
        self.check_call(args, done)
        cdef Py_ssize_t count = take_all(self, taken)
        if count == len(taken):
            return begin_all(self.runner, self, taken, args, done, outcomes, variables)
        for index in range(count):
            let_go(<Message>taken[index], self)
        each = taken[count]
        if not isinstance(each, Message):
            raise TypeError(f"{self.name}: run_many() needs messages, not {describe(each)}")
        raise MqError(f"{self.name}: message {count} of run_many(): {in_step(each)}")

    def stream(self, messages, *args, max_in_flight=1000, ordered=False):
        """Run each of an iterable of messages, sync or async: an asynchronous iterator of tuples of a message and its outcome.

        `max_in_flight`: at most so many are read and not yielded yet. `ordered`: they come in the order in which they were
        read, else as they end. A step that fails is yielded with FAIL. What the iterable raises, or a message of it that is
        in a step already, is raised once all that was in flight has been yielded. uvloop only: on pyuv an MqError.
        """
        from ._stream import new_stream  # it is built on this module

        if self.runner.reactor.library.owner != "uvloop":
            raise MqError(f"{self.name}: stream() needs a uvloop loop; on pyuv use run() with done=")
        self.check_call(args, None)
        return new_stream(self, messages, args, max_in_flight, ordered)

    cdef int check_call(self, tuple args, object done) except -1:
        self.runner.reactor.check(self.name)
        if self.chain is None:
            raise MqError(f"{self.name}: the dispatcher is still being made; run messages when that is done")
        if len(args) != self.extra:
            raise TypeError(f"{self.spec.signature}: {len(args)} extra arguments were given, {self.extra} are needed")
        if done is not None and not PyCallable_Check(done):
            raise TypeError(f"{self.name}: done must be callable, not {describe(done)}")
        return 0

    def __repr__(self):
        return f"<mqcore.Hook {self.name}, {0 if self.chain is None else len(self.chain.contexts)} plugins>"


cdef Py_ssize_t take_all(Hook hook, tuple messages) noexcept:
    """Take one after the other, up to the first that is none or is in a step: how many. No memory is made in here, so nobody's
    code runs."""
    cdef Py_ssize_t index
    for index in range(size_of(messages)):
        if not is_idle(<object>item_of(messages, index)):
            return index
        take(<Message>item_of(messages, index), hook)
    return size_of(messages)


cdef inline bint is_idle(object each) noexcept:
    return isinstance(each, Message) and (<Message>each).state == IDLE


cdef inline void take(Message message, Hook hook) noexcept:
    move(&hook.holds.lists, message, IDLE, TAKEN)
    message.entry = &hook.waiting
    message.last_hook = hook.waiting.hook


cdef void let_go(Message message, Hook hook) noexcept:
    """It is not run after all."""
    if message.state == TAKEN:
        message.entry = NULL
        message.decision = UNDECIDED
        move(&hook.holds.lists, message, TAKEN, IDLE)


cdef str in_step(Message message):
    if message.state == HELD:
        return (f"the message is in a step of {<str>message.last_hook} that has not ended: "
                f"plugin {<str>message.entry.plugin} holds it")
    return "the message is in a step that has not ended, or comes twice"


cdef Hook new_hook(Runner runner, object dispatcher, str name, object spec):
    cdef Hook hook = Hook.__new__(Hook)
    open_route(hook, name, runner.holds)
    if len(spec.args) > MOST_ARGUMENTS - 2:
        raise MqError(f"{name} has {len(spec.args)} extra arguments; a hook has at most {MOST_ARGUMENTS - 2}")
    hook.spec = spec
    hook.runner = runner
    hook.dispatcher = dispatcher
    hook.extra = len(spec.args)
    return hook


@cython.final
cdef class Waiter:
    """The `done` of an awaited step, which has a future."""
    cdef Runner runner
    cdef readonly object future

    def __call__(self, message, outcome):
        if not self.future.done() and not self.future.get_loop().is_closed():
            self.future.set_result(outcome)

    def end(self, Message message not None):
        """Nobody waits any more. If the step has not ended, the task was cancelled or the coroutine closed: a collected one on
        any thread."""
        if message.done is self and self.runner.reactor.thread == PyThread_get_thread_ident():
            cancel_step(self.runner, message)


seal(Hook)
seal(Waiter)
