"""A step that is looked at: what each plugin did in it, and when.

A traced step goes along a chain of its own. It has the plugins of the hook's chain, with a `Probe` in the place of each Python
function, and one before each C function of a native plugin. To the core it is a chain like any other: nothing is asked anywhere
for the sake of steps that are not traced, and what plugins may do is the same.
"""

import time

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint64_t

from ._chain cimport Chain, Route, new_chain, new_chain_with, open_route
from ._dispatch cimport Runner
from ._message cimport Message
from .loop._call cimport ends_program, take_error
from .loop._seal cimport seal

from .errors import DispatcherClosed, MqError
from .stats import Call
from .verdicts import FAIL

cdef enum:
    MOST_CALLS = 1000
    LONGEST = 500                   # characters of an error

cdef object OUTCOME_FAIL = FAIL


@cython.final
@cython.no_gc_clear  # the step goes along what it refers to
cdef class Trace(Route):
    """What plugins do in one step, of `hook.run_traced`; each step has a new one.

    `look`: called with the message when the step begins, and after each plugin; what it returns then, an iterable of texts, is
    what the plugin changed. `most`: so many calls are noted.

    `name`: the hook's, None until the trace is used. `started`: in seconds since 1970. `calls`: a list of `mqcore.stats.Call`,
    in order. `outcome`: None until the step has ended; then there are `seconds`, `error` (why it failed, as text, or None),
    `not_called` (the names of the plugins that it did not come to), and `left_out` (how many calls were not noted).
    """

    def __cinit__(self):
        self.calls = []
        self.not_called = ()
        self.names = ()
        self.most = MOST_CALLS
        self.place = -1
        self.over = True

    def __init__(self, look=None, *, Py_ssize_t most=MOST_CALLS):
        if self.runner is not None:
            raise MqError("the trace is in use")
        if most < 1:
            raise ValueError(f"most is a number of calls, not {most}")
        self.look = look
        self.most = most

    cdef int open(self, Runner runner, Route hook, Message message) except -1:
        """Make the chain, which is there until `close`."""
        self.runner = runner
        self.hook = hook
        open_route(self, hook.name, hook.holds)
        self.look_at(message)
        self.chain = self.rest = new_chain(hook, ())
        if hook.chain is None:
            raise DispatcherClosed(f"{hook.name}: the dispatcher is closed")
        self.chain = chain_of(self, hook.chain)
        self.names = names_in(hook.chain)
        if hook.traces is None:
            hook.traces = []
        hook.traces.append(self)
        self.started = time.time()
        self.begun = self.now()
        self.over = False
        return 0

    cdef int close(self) except -1:
        """No step goes along its chain any more, which refers to this."""
        self.over = True
        if self.hook is not None and self.hook.traces is not None and self in self.hook.traces:
            self.hook.traces.remove(self)
        if self.rest is not None:
            self.chain = self.rest
        return 0

    cdef void end(self, Message message, object outcome) noexcept:
        """The step has ended."""
        if not self.over and (<int (*)(Trace, Message, object) noexcept>note_end)(self, message, outcome) < 0:
            self.lost()

    cdef void enter(self, tuple names, Py_ssize_t place, Message message) noexcept:
        """A plugin is about to be called."""
        if self.over:
            return
        if (<int (*)(Trace, Message, bint) noexcept>note_going_on)(self, message, place > self.place) < 0:
            self.lost()
        self.names = names
        self.place = place
        self.in_call = True
        self.raised = None
        self.returned = 0
        self.holds_before = self.holds.lists.holds_begun
        self.called = self.now()

    cdef void leave(self, object raised) noexcept:
        """The Python function has returned, or raised."""
        if self.over:
            return
        self.returned = self.now()
        self.holds_before = self.holds.lists.holds_begun
        if raised is not None and (<int (*)(Trace, object) noexcept>note_raised)(self, raised) < 0:
            self.lost()

    cdef void lost(self) noexcept:
        """What was just raised keeps something from being noted, and nothing else: there was no memory for it."""
        cdef PyObject *error = take_error()
        if ends_program(<object>error):
            self.runner.reactor.raise_through_loop(<object>error)
        Py_DECREF(<object>error)
        self.left_out += 1

    cdef uint64_t now(self) noexcept:
        return self.runner.reactor.state.uv.hrtime()

    cdef int note_call(self, str verdict, uint64_t now, Message message, str error) except -1:
        """What the plugin did that was called last, now that the step goes on or has ended."""
        if not self.in_call:
            return 0
        self.in_call = False
        cdef Py_ssize_t place = self.place
        cdef bint was_held = self.holds.lists.holds_begun != self.holds_before
        cdef uint64_t since = self.returned or self.called
        cdef object seconds = None if was_held and not self.returned else ((self.returned or now) - self.called) / 1e9
        cdef object held = (now - since) / 1e9 if was_held else None
        cdef tuple changes = self.look_at(message)
        if len(self.calls) == self.most:
            self.left_out += 1
            return 0
        begin = (self.called - self.begun) / 1e9
        self.calls.append(Call(self.names[place], verdict, begin, seconds, held, changes, self.raised or error))
        return 0

    cdef tuple look_at(self, Message message):
        if self.look is None:
            return ()
        try:
            return tuple(self.look(message))
        except Exception as error:
            return (f"cannot be looked at: {text_of(error)}",)

    def __repr__(self):
        if self.name is None:
            return "<mqcore.Trace, not used yet>"
        return f"<mqcore.Trace of {self.name}, {len(self.calls)} calls>"


cdef int note_end(Trace trace, Message message, object outcome) except -1:
    cdef uint64_t now = trace.now()
    trace.close()
    trace.outcome = outcome
    trace.seconds = (now - trace.begun) / 1e9
    trace.not_called = trace.names[trace.place + 1:]
    if outcome is OUTCOME_FAIL:
        trace.error = text_of(message.error)
    return trace.note_call(outcome.name, now, message, trace.error)


cdef int note_going_on(Trace trace, Message message, bint further) except -1:
    return trace.note_call("CONTINUE" if further else "RETRY", trace.now(), message, None)


cdef int note_raised(Trace trace, object raised) except -1:
    trace.raised = text_of(raised)
    return 0


@cython.final
cdef class Probe:
    """Notes that a plugin is called, and calls its Python function; a C function is called by the core, after this."""
    cdef Trace trace
    cdef object function            # None: there is none
    cdef tuple names                # of the chain
    cdef Py_ssize_t place           # in that

    def __call__(self, context, Message message not None, *args):
        cdef Trace trace = self.trace
        if trace is None or trace.over:
            raise TypeError("a Probe is called by a dispatcher alone")
        if self.function is None and message.entry != NULL and message.entry.function == <PyObject *>self:
            message.entry.counters.caller.calls -= 1  # the call that counts is the next one
        trace.enter(self.names, self.place, message)
        if self.function is None or trace.runner.closed:
            return None
        try:
            result = self.function(context, message, *args)
        except BaseException as error:
            trace.leave(error)
            raise
        trace.leave(None)
        return result


cdef tuple names_in(Chain chain):
    cdef list names = []
    for context in chain.contexts:
        names.append(context.plugin.name)
    return tuple(names)


cdef Chain chain_of(Trace trace, Chain chain):
    """The same plugins, with probes."""
    cdef list probes = []
    cdef Probe probe
    cdef tuple names = names_in(chain)
    cdef Py_ssize_t place
    for place in range(len(names)):
        probe = Probe.__new__(Probe)
        probe.trace = trace
        probe.names = names
        probe.place = place
        if chain.entries[place].native == NULL:
            probe.function = chain.functions[place]
        probes.append(probe)
    return new_chain_with(trace, chain, probes)


@cython.final
cdef class Ended:
    """The `done` of a traced step."""
    cdef Trace trace
    cdef object done

    def __call__(self, Message message not None, outcome):
        if self.trace is not None:
            self.trace.end(message, outcome)
        if self.done is not None:
            self.done(message, outcome)


cdef object new_ended(Trace trace, object done):
    cdef Ended ended = Ended.__new__(Ended)
    ended.trace = trace
    ended.done = done
    return ended


cdef str text_of(error):
    """What plugins raise may be anything."""
    try:
        return f"{type(error).__name__}: {error}"[:LONGEST]
    except Exception:
        return "an error that cannot be told of"


seal(Probe)
seal(Ended)
