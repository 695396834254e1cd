"""The steps that messages take through chains of plugins.

`Steps.advance` is the heart: it calls one plugin after the other until one takes control or the step is decided. A step that
nobody holds allocates nothing and looks nothing up: a chain is a flat array, and the message carries its place in it. A step
that was suspended goes on in a turn, by `Steps.resume`.
"""

import asyncio
import contextvars
import logging
import sys

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint64_t

from .loop._call cimport call_function, what_was_raised
from ._chain cimport Chain, Route
from ._context cimport Context, Hold
from .loop._reactor cimport ends_program
from ._message cimport (
    HELD, IDLE, RUNNING, TO_CANCEL, TO_COMPLETE, TO_CONTINUE, TO_FAIL, TO_RETRY, UNDECIDED, Counters, Entry, Message,
    native_side)

from .errors import Abandoned, Cancelled, DispatcherClosed, MqError, RetryLimit
from .verdicts import COMPLETE, CONTINUE, FAIL, RETRY

cdef extern from "Python.h":
    PyObject *Py_None
    PyObject *Py_False

cdef enum:
    TAKEN = 100              # what a hook said, beside the verdicts: that it has the message,
    UNKNOWN = 101            # or nothing that is known

cdef bint EAGER_TASKS = sys.version_info >= (3, 12)

# In C, where no module's dict is searched for them.
cdef object OUTCOME_CONTINUE = CONTINUE
cdef object OUTCOME_COMPLETE = COMPLETE
cdef object OUTCOME_FAIL = FAIL
cdef object VERDICT_RETRY = RETRY


# ----------------------------------------------------------------------------------------------------------------- Steps

cdef class Steps(Control):

    cdef PyObject *begin(self, Chain chain, Message message, tuple args, object done) except NULL:
        """The step of a message in state RUNNING: an outcome, or None, which are kept for ever. The caller keeps the chain."""
        cdef int verdict
        self.books.entered += 1
        self.books.running += 1
        message.retries = 0
        message.last_hook = chain.entries.hook
        if message.error is not None and message.verdict == UNDECIDED:
            message.error = None
        if args:
            message.args = args
        verdict = Steps.advance(self, message, chain, chain.entries)
        if verdict != UNDECIDED:
            return Steps.finish(self, message, verdict)
        return self.begun(chain, message, verdict, args, done)

    cdef PyObject *begun(self, Chain chain, Message message, int verdict, tuple args, object done) except NULL:
        """What `begin` returns, once the plugins have been called."""
        if verdict != UNDECIDED:
            return self.finish(message, verdict)
        if message.chain is None:
            message.chain = chain
        message.suspended = True
        message.done = done
        if chain.coroutines and message.variables is None:
            message.variables = contextvars.copy_context()
        if done is not None or args or message.variables is not None:
            message.track()
        return Py_None

    cdef list begin_all(self, Route route, list messages, tuple args, object done):
        """`begin` for messages in state RUNNING, each with the chain as it is by then: a list of outcomes and Nones."""
        cdef list outcomes = [OUTCOME_CONTINUE] * len(messages)
        cdef PyObject *outcome
        cdef Py_ssize_t index = 0
        cdef Chain chain
        while index < len(messages):
            chain = route.chain
            if chain.native and not args:
                index = native_side.begin_many(self, chain, messages, index, outcomes, done)
            else:
                outcome = Steps.begin(self, chain, <Message>messages[index], args, done)
                if outcome != <PyObject *>OUTCOME_CONTINUE:
                    outcomes[index] = <object>outcome
                index += 1
        return outcomes

    cdef void resume(self, Message message) noexcept:
        """Go on with a suspended step as message.verdict says. In a turn."""
        cdef Chain chain = <Chain>message.chain
        cdef int verdict = self.proceed(message, chain, message.verdict)
        if verdict != UNDECIDED:
            self.conclude(message, <object>self.finish(message, verdict))

    cdef int proceed(self, Message message, Chain chain, int verdict) noexcept:
        """Go on as the plugin at message.entry has it: how the step ends, or UNDECIDED when it is suspended."""
        if verdict == TO_CONTINUE:
            message.verdict = UNDECIDED
            return self.advance(message, chain, message.entry + 1)
        if verdict == TO_RETRY:
            verdict = self.start_over(message, chain.route)
            if verdict == UNDECIDED:
                return self.advance(message, chain, (<Chain>message.chain).entries)
        elif verdict == TO_FAIL and message.error is None:
            message.entry.counters.abandoned += 1
            return self.broke_a_rule(message, Abandoned(
                f"plugin {<str>message.entry.plugin} took control of the message in {<str>message.entry.hook} and dropped all "
                f"that it could have given it back with"))
        return verdict

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
        cdef bint timed = is_sampled(&self.until_sample)
        if message.verdict == TO_CANCEL:  # run_many() had taken it, and a hook of one before it cancelled it
            return TO_CANCEL
        while True:
            if self.reactor.closed:
                return self.judge(message, None)
            if entry.function == NULL:
                if entry.native == NULL:
                    return TO_CONTINUE
                verdict = native_side.call(self, message, entry, timed)  # and those that follow, as long as they are native
                entry = message.entry
            else:
                message.entry = entry
                arguments[0] = entry.context
                counters = entry.counters
                counters.calls += 1
                if timed:
                    start = self.reactor.state.uv.hrtime()
                result = call_function(entry.function, arguments, count)
                if timed:
                    add_sample(counters, self.reactor.state.uv.hrtime() - start)
                if (result == Py_False or result == Py_None) and message.verdict == UNDECIDED and message.token == NULL:
                    Py_DECREF(<object>result)
                    entry += 1
                    continue
                verdict = self.returned(message, result)
            if verdict == TO_CONTINUE:
                entry += 1
            elif verdict == TO_RETRY:
                verdict = self.start_over(message, chain.route)
                if verdict != UNDECIDED:
                    return verdict
                entry = (<Chain>message.chain).entries
            else:
                break
        return verdict

    cdef int returned(self, Message message, PyObject *result) noexcept:
        """What follows from the result of a Python hook, which may be NULL."""
        cdef int verdict
        if result != NULL:
            value = <object>result
            Py_DECREF(value)
            return self.judge(message, value)
        error = what_was_raised()
        verdict = self.hook_raised(message, error)
        if ends_program(error):
            self.reactor.raise_through_loop(error)
        return verdict

    cdef int judge(self, Message message, object value) noexcept:
        """What follows from what a hook returned."""
        if self.reactor.closed:
            message.verdict = TO_FAIL
            message.fail(closed_in_step(message))
            return TO_FAIL
        if meaning_of(message, value) == UNKNOWN and asyncio.iscoroutine(value):
            return self.start_coroutine(message, value)
        # Read only now: another thread may give back as long as Python code runs.
        cdef int early = message.verdict
        if early == TO_CANCEL:
            return TO_CANCEL
        cdef int verdict = self.settle(message, value, early)
        if verdict == UNDECIDED:
            self.begin_hold(message)
            if early != UNDECIDED:  # rule 7: a hold that is over at once
                self.release(message, early)
            return UNDECIDED
        return self.leave_hook(message, verdict)

    cdef int leave_hook(self, Message message, int verdict) noexcept:
        """The hook did not take the message: a Hold that it asked for is over. What becomes of the verdict."""
        if message.token != NULL:
            message.verdict = verdict  # nobody has control while Python code may run
            message.let_go()
            if message.verdict == TO_CANCEL:
                return TO_CANCEL
        message.verdict = UNDECIDED
        return verdict

    cdef int settle(self, Message message, object value, int early) noexcept:
        """Rule 7: the verdict that follows from what a hook, or its coroutine, returned and what it gave back before.

        UNDECIDED when it said that it has the message.
        """
        cdef int verdict = meaning_of(message, value)
        message.verdict = UNDECIDED
        if verdict == TAKEN:
            message.by_token = value is not True
            return UNDECIDED
        if early == TO_FAIL:
            return TO_FAIL
        if verdict == UNKNOWN:
            message.verdict = TO_FAIL
            return self.hook_raised(message, TypeError(
                f"plugin {<str>message.entry.plugin} returned {describe(value)} from {<str>message.entry.hook}; a hook "
                f"returns False, None, CONTINUE, COMPLETE, RETRY, True, or the Hold of this message"))
        if early == UNDECIDED:
            if verdict == TO_COMPLETE:
                message.entry.counters.completes += 1
            elif verdict == TO_RETRY:
                message.entry.counters.retries += 1
        elif early != verdict:
            message.verdict = TO_FAIL
            return self.hook_raised(message, MqError(
                f"plugin {<str>message.entry.plugin} gave the message back in {<str>message.entry.hook} "
                f"({spell(early)}), but then returned {describe(value)}; return True after giving back"))
        return verdict

    cdef int hook_raised(self, Message message, object error) noexcept:
        """Rule 13: a hook raised, or returned what it may not."""
        cdef Context context = <Context>message.entry.context
        if message.verdict != TO_CANCEL:
            message.verdict = TO_FAIL  # nobody has control while this is logged
        context.failure(error, <str>message.entry.hook)
        if context.forgiving and not ends_program(error) and not self.reactor.closed and message.verdict != TO_CANCEL:
            message.error = None
            return self.leave_hook(message, TO_CONTINUE)
        if message.verdict == TO_CANCEL:
            return TO_CANCEL
        message.fail(error)
        return TO_FAIL

    cdef int start_over(self, Message message, Route route) noexcept:
        """Rules 5 and 11: from now on the chain is the one that there is now. UNDECIDED, or how the step ends when there were
        too many retries."""
        if message.retries >= self.max_retries:
            return self.broke_a_rule(message, RetryLimit(
                f"plugin {<str>message.entry.plugin} asked for retry {message.retries + 1} of one step of "
                f"{<str>message.entry.hook}; max_retries is {self.max_retries}"))
        message.retries += 1
        message.chain = route.chain
        message.verdict = UNDECIDED
        return UNDECIDED

    cdef int broke_a_rule(self, Message message, object error) noexcept:
        """A plugin did, without an exception, what ends the step: logged. How it ends."""
        message.verdict = TO_FAIL  # nobody has control meanwhile
        self.reactor.log((<Context>message.entry.context).log, logging.WARNING, "%s", (error,), None)
        if message.verdict == TO_CANCEL:
            return TO_CANCEL
        message.fail(error)
        return TO_FAIL

    cdef PyObject *finish(self, Message message, int verdict) noexcept:
        """End the step. RUNNING -> IDLE, last of all: what is let go may run Python code. Returns the outcome, which is kept
        for ever."""
        cdef PyObject *outcome = <PyObject *>OUTCOME_FAIL
        message.verdict = verdict
        self.books.running -= 1
        if verdict == TO_CONTINUE:
            self.books.continued += 1
            outcome = <PyObject *>OUTCOME_CONTINUE
        elif verdict == TO_COMPLETE:
            self.books.completed += 1
            outcome = <PyObject *>OUTCOME_COMPLETE
        elif verdict == TO_CANCEL:
            self.books.cancelled += 1
        else:
            self.books.failed += 1
            if message.entry != NULL:
                message.entry.counters.failures += 1
        if message.token != NULL:
            message.let_go()
        message.entry = NULL
        if message.args is not None:
            message.args = None
        if message.chain is not None:
            message.chain = None
            message.variables = None
        message.verdict = UNDECIDED
        message.state = IDLE
        return outcome

    cdef void conclude(self, Message message, object outcome) noexcept:
        """Rule 15: tell `done` how a suspended step ended."""
        cdef PyObject *space[3]
        cdef PyObject *result
        done = message.done
        message.done = None
        if not message.suspended:
            return
        message.suspended = False
        if done is None:
            return
        space[1] = <PyObject *>message
        space[2] = <PyObject *>outcome
        result = call_function(<PyObject *>done, space + 1, 2)
        if result == NULL:
            self.reactor.report(what_was_raised(), f"done of {<str>message.last_hook}")
        else:
            Py_DECREF(<object>result)

    # ---------------------------------------------------------------------------------------------------- coroutine hooks

    cdef int start_coroutine(self, Message message, object coroutine) noexcept:
        """Run the coroutine of a hook in a task, which has control until it returns."""
        cdef CoroutineEnd end
        try:
            if self.reactor.library.owner != "uvloop":
                coroutine.close()
                raise MqError("the hook returned a coroutine, which needs a uvloop loop")
            variables = contextvars.copy_context() if message.variables is None else message.variables.copy()
            options = {"eager_start": True} if EAGER_TASKS else {}
            task = asyncio.Task(coroutine, loop=self.reactor.loop, name=f"{<str>message.entry.plugin}:{<str>message.entry.hook}",
                                context=variables, **options)
            if task.done():
                return self.judge(message, not_again(task.result()))
            end = CoroutineEnd.__new__(CoroutineEnd)
            end.steps = self
            end.message = message
            task.add_done_callback(end, context=variables)
            if self.reactor.closed or message.verdict == TO_CANCEL:
                task.cancel()
                return self.judge(message, None)
            message.task = task
            message.track()
            self.begin_hold(message)
            return UNDECIDED
        except BaseException as error:
            if ends_program(error):  # an eager task raises it here; asyncio lets another one's out itself
                self.reactor.raise_through_loop(error)
            return self.hook_raised(message, error)

    cdef void coroutine_ended(self, Message message, object task) noexcept:
        """The coroutine of a hook, which has held the message, returned or raised: go on in a turn."""
        cdef int early
        cdef int verdict
        raised = None
        value = None
        try:
            value = not_again(task.result())
        except BaseException as error:
            raised = error
        if message.task is not task:
            return  # the step was ended meanwhile
        early = message.verdict  # read only now: until here a give-back is early
        message.task = None
        if raised is None:
            verdict = self.settle(message, value, early)
        else:
            verdict = self.hook_raised(message, raised)
        if message.state != HELD:
            return  # likewise, where this was logged
        if verdict == UNDECIDED:
            verdict = early
        if verdict != UNDECIDED:
            self.release(message, verdict)
        else:
            self.held_weakly(message)

    # ------------------------------------------------------------------------------------------------------- ended by others

    cdef void end_step(self, Message message, int verdict, object error) noexcept:
        """End the step of a message that is held or queued."""
        if message.state == HELD:
            self.take_back(message, verdict)
            self.let_hold_go(message)
        else:
            self.unlink_queued(message)
        message.fail(error)
        self.conclude(message, <object>self.finish(message, verdict))

    cdef bint cancel_step(self, Message message) noexcept:
        """Rule 14: end the step that the message is in, if any, or have it end when its hook returns."""
        if message.state == IDLE or message.entry != NULL and (<Context>message.entry.context).owner is not self:
            return False
        error = Cancelled(f"the step of {'' if message.last_hook == NULL else <str>message.last_hook} was cancelled")
        if message.state == RUNNING:
            if message.entry == NULL and message.verdict != UNDECIDED and message.verdict != TO_CANCEL:
                return False  # it is just ending
            message.verdict = TO_CANCEL
            message.fail(error)
            if self.native != NULL:
                native_side.disturb(self)
            return True
        self.collect_given()  # where it may be
        self.end_step(message, TO_CANCEL, error)
        self.reactor.wake()  # so that an idle dispatcher comes to rest
        return True

    cdef void end_open_steps(self) noexcept:
        cdef Message message
        for message in self.all_held():
            if message.state == HELD:  # `done` of another may have dropped it
                self.end_step(message, TO_FAIL, closed_in_step(message))
        while self.first_queued != NULL or self.collect_given():
            message = <Message>self.first_queued
            self.end_step(message, TO_FAIL, closed_in_step(message))


@cython.final
cdef class CoroutineEnd:
    """Called when the task of a coroutine hook has ended."""
    cdef Steps steps
    cdef Message message

    def __call__(self, task):
        if self.message.task is task:
            self.steps.coroutine_ended(self.message, task)
        elif not task.cancelled():
            task.exception()  # the step ended without it: nobody is left to be told


# --------------------------------------------------------------------------------------------------------------- helpers

cdef int meaning_of(Message message, object value) noexcept:
    """What a hook said by what it returned: a verdict, TAKEN or UNKNOWN."""
    if value is True or message.token != NULL and value is <object>message.token:
        return TAKEN
    if value is None or value is False or value is OUTCOME_CONTINUE:
        return TO_CONTINUE
    if value is OUTCOME_COMPLETE:
        return TO_COMPLETE
    if value is VERDICT_RETRY:
        return TO_RETRY
    return UNKNOWN


cdef void add_sample(Counters *counters, uint64_t ns) noexcept nogil:
    counters.samples += 1
    counters.sampled_ns += ns
    if ns > counters.longest_ns:
        counters.longest_ns = ns


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
