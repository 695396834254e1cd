"""The way of a message through a chain of plugins; `Hook`, to run messages through, and `Dispatcher`, one worker's engine.

`advance` is the heart: it calls one plugin after the other until one takes control or the step is decided. A step that nobody
holds allocates nothing and looks nothing up: a chain is a flat array, and the message carries its place in it. A step that was
suspended goes on in a tick, by `resume`.

While a hook is called, and until what it returned has been looked at, the message is RUNNING: whatever anybody's code does in
the meantime can only mark it (`Message.decision`), and that is read anew. Once it is HELD or IDLE nothing runs before the books
are in order; what is to be dropped by then waits in `Drops`, and each way into this module ends with flush().
"""

import asyncio
import contextvars
import difflib
import logging

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t

from ._chain cimport Chain, Route, open_route
from ._changes cimport new_active_plugins
from ._context cimport Context, Hold, log_failure
from ._coroutine cimport is_coroutine, result_of, start_task, watch_task
from ._holds cimport HoldTable, has_pending, new_hold_table, stop_when_idle
from ._message cimport (
    CANCELLED, CLOSED, ABANDONED, GIVEN_BACK, HELD, IDLE, QUEUED, RUNNING, TAKEN, TIMED_OUT, TOO_MANY_RETRIES, TO_CANCEL,
    TO_COMPLETE, TO_CONTINUE, TO_FAIL, TO_RETRY, UNDECIDED, Books, Counters, Drops, Entry, Message, drop_later, end_hold,
    end_token, finalizer_is_trusted, flush, move, native_side, no_drops, report_raised)
from .loop._call cimport call_function, ends_program, take_error
from .loop._reactor cimport (
    RESUME_PHASE, SWEEP_PHASE, TIMEOUT_PHASE, Portion, PyThread_get_thread_ident, goes_on, new_reactor, start_portion)
from .loop._seal cimport seal

from ._waiting import checked_outcome_of, outcome_of
from .errors import DispatcherClosed, MqError
from .loop._ending import Ending
from .plugins import Plugins
from .stats import Held, Stats
from .verdicts import COMPLETE, CONTINUE, FAIL, HOLD, RETRY

cdef extern from "Python.h":
    PyObject *Py_None
    PyObject *Py_False
    bint PyCallable_Check(object)
    int PyList_SetItem(object, Py_ssize_t, PyObject *) noexcept
    Py_ssize_t size_of "PyTuple_GET_SIZE"(tuple) noexcept
    PyObject *item_of "PyTuple_GET_ITEM"(tuple, Py_ssize_t) noexcept  # borrowed

cdef enum:
    HOLDS = 100              # what a hook said, beside decisions: that it has the message,
    UNKNOWN = 101            # or nothing that is known

# In C, where no module's dict is searched for them.
cdef object OUTCOME_CONTINUE = CONTINUE
cdef object OUTCOME_COMPLETE = COMPLETE
cdef object OUTCOME_FAIL = FAIL
cdef object VERDICT_HOLD = HOLD
cdef object VERDICT_RETRY = RETRY

cdef object AWAITED = object()  # the `done` of a step that was just begun to be awaited


# ---------------------------------------------------------------------------------------------------------- Into the chain

cdef PyObject *begin(
        Dispatcher dispatcher, Chain chain, Message message, int before, tuple args, object done, object variables) noexcept:
    """The step of a message that is IDLE or TAKEN. Returns a borrowed reference to an immortal object, an outcome or None; the
    caller must own `chain`."""
    cdef Drops drops
    cdef PyObject *outcome
    cdef int decision
    no_drops(&drops)
    move(&dispatcher.holds.lists, message, before, RUNNING)
    message.retries = 0
    message.last_hook = chain.entries.hook
    if message.failure is not None and message.decision == UNDECIDED:
        message.fail(None, &drops)
    if size_of(args):
        message.args = args
    if variables is not None:
        message.variables = variables
    decision = advance(dispatcher, message, chain, chain.entries, &drops)
    outcome = begun(dispatcher, chain, message, decision, args, done, variables, &drops)
    flush(&drops, dispatcher.reactor)
    return outcome


cdef PyObject *begun(
        Dispatcher dispatcher, Chain chain, Message message, int decision, tuple args, object done, object variables,
        Drops *drops) noexcept:
    """What `begin` returns, once the plugins have been called."""
    if decision != UNDECIDED:
        if variables is not None:
            message.variables = None
        return finish(dispatcher, message, decision, drops)
    if message.chain is None:
        message.chain = chain
    message.suspended = True
    message.done = done
    if done is not None or size_of(args) or variables is not None:
        message.track()
    return Py_None


cdef int advance(Dispatcher dispatcher, Message message, Chain chain, Entry *entry, Drops *drops) noexcept:
    """Rules 1 to 5: call plugins, from `entry` on. Returns how the step ends, or UNDECIDED when it is suspended."""
    cdef PyObject *space[MOST_ARGUMENTS + 1]
    cdef PyObject **arguments = space + 1  # a bound method uses the place before the first
    cdef size_t count = 2
    cdef PyObject *result
    cdef Counters *counters
    cdef uint64_t start = 0
    cdef int decision
    arguments[1] = <PyObject *>message
    if message.args is not None:
        while count < size_of(message.args) + 2:
            arguments[count] = item_of(message.args, count - 2)  # message.args keeps it
            count += 1
    cdef bint timed = is_sampled(&dispatcher.until_sample)
    if message.decision == TO_CANCEL:  # run_many() had taken it, and a hook of one before it cancelled it
        return TO_CANCEL
    while True:
        if dispatcher.closed:
            return closed_meanwhile(message, drops)
        if entry.function == NULL:
            if entry.native == NULL:
                return TO_CONTINUE
            decision = native_side.call(dispatcher, message, entry, timed, drops)  # and those that follow, if they are native
            entry = message.entry
        else:
            message.entry = entry
            arguments[0] = entry.context
            counters = entry.counters
            counters.calls += 1
            if timed:
                start = dispatcher.reactor.state.uv.hrtime()
            result = call_function(entry.function, arguments, count)
            if timed:
                add_sample(counters, dispatcher.reactor.state.uv.hrtime() - start)
            if (result == Py_False or result == Py_None) and message.decision == UNDECIDED and message.token == NULL:
                Py_DECREF(<object>result)
                entry += 1
                continue
            decision = returned(dispatcher, message, result, drops)
        if decision == TO_CONTINUE:
            entry += 1
        elif decision == TO_RETRY:
            decision = start_over(dispatcher, message, chain.route, drops)
            if decision != UNDECIDED:
                return decision
            entry = (<Chain>message.chain).entries
        else:
            break
    return decision


cdef list begin_all(
        Dispatcher dispatcher, Route route, tuple messages, tuple args, object done, list outcomes, object variables):
    """`begin` for messages that are TAKEN, each with the chain as it is by then. `outcomes` has CONTINUE for each."""
    cdef PyObject *outcome
    cdef Py_ssize_t count = len(messages)
    cdef Py_ssize_t index = 0
    cdef Chain chain
    while index < count:
        if route.chain is not None:  # else a hook has closed the dispatcher
            chain = route.chain
        if chain.native and not args and not dispatcher.closed:
            index = native_side.begin_many(dispatcher, chain, messages, index, outcomes, done, variables)
        else:
            outcome = begin(dispatcher, chain, <Message>messages[index], TAKEN, args, done, variables)
            if outcome != <PyObject *>OUTCOME_CONTINUE:
                Py_INCREF(<object>outcome)
                PyList_SetItem(outcomes, index, outcome)
            index += 1
    return outcomes


cdef void resume(Dispatcher dispatcher, Message message) noexcept:
    """Go on with a suspended step as message.decision says. In a tick."""
    cdef Drops drops
    cdef Chain chain = <Chain>message.chain
    cdef int decision
    no_drops(&drops)
    decision = proceed(dispatcher, message, chain, message.decision, &drops)
    if decision != UNDECIDED:
        conclude(dispatcher, message, finish(dispatcher, message, decision, &drops))
    flush(&drops, dispatcher.reactor)


cdef int proceed(Dispatcher dispatcher, Message message, Chain chain, int decision, Drops *drops) noexcept:
    """Go on as the plugin at message.entry has it: how the step ends, or UNDECIDED when it is suspended."""
    if decision == TO_CONTINUE:
        message.decision = UNDECIDED
        return advance(dispatcher, message, chain, message.entry + 1, drops)
    if decision == TO_RETRY:
        decision = start_over(dispatcher, message, chain.route, drops)
        if decision == UNDECIDED:
            return advance(dispatcher, message, chain, (<Chain>message.chain).entries, drops)
    elif decision == TO_FAIL and message.reason == ABANDONED:
        message.entry.counters.abandoned += 1
        end_hold(message, drops)  # the finalizer only queued it
        return log_reason(dispatcher, message)
    return decision


# --------------------------------------------------------------------------------------------------- What a hook returned

cdef int returned(Dispatcher dispatcher, Message message, PyObject *result, Drops *drops) noexcept:
    """What follows from the result of a Python hook, which may be NULL."""
    if result == NULL:
        return hook_raised(dispatcher, message, take_error(), drops)
    drops.items[drops.count] = result  # its reference; dropped when the step is suspended or goes on
    drops.count += 1
    return interpret(dispatcher, message, <object>result, drops)


cdef int interpret(Dispatcher dispatcher, Message message, object value, Drops *drops) noexcept:
    """What follows from what a hook, or its coroutine, returned."""
    cdef int meaning = meaning_of(message, value)
    cdef int decision
    if meaning == UNKNOWN and not dispatcher.closed:
        decision = (<int (*)(object) noexcept>is_coroutine)(value)
        if decision < 0:
            return hook_raised(dispatcher, message, take_error(), drops)
        if decision:
            return run_coroutine(dispatcher, message, value, drops)
    if dispatcher.closed:
        return closed_meanwhile(message, drops)
    # Read only now: another thread may give back as long as Python code runs.
    cdef int early = message.decision
    if early == TO_CANCEL:
        return TO_CANCEL
    decision = (<int (*)(Message, object, int, int) noexcept>settle)(message, value, meaning, early)
    if decision < 0:
        return hook_raised(dispatcher, message, take_error(), drops)
    if decision == UNDECIDED:
        hold(dispatcher, message, early, drops)
        return UNDECIDED
    return leave_hook(dispatcher, message, decision, drops)


cdef void hold(Dispatcher dispatcher, Message message, int early, Drops *drops) noexcept:
    """The plugin at message.entry has the message now. RUNNING -> HELD, and where it gave back before (rule 7) -> QUEUED."""
    if message.task is not None or message.native != NULL or not finalizer_is_trusted(message):
        message.strong = True
        Py_INCREF(message)
    move(&dispatcher.holds.lists, message, RUNNING, HELD)
    if early == UNDECIDED:
        return
    Py_INCREF(message)  # the queue's
    message.decision = early
    dispatcher.holds.collect_given()  # which were given back before it
    move(&dispatcher.holds.lists, message, HELD, QUEUED)
    end_hold(message, drops)
    dispatcher.reactor.request_tick()


cdef int leave_hook(Dispatcher dispatcher, Message message, int decision, Drops *drops) noexcept:
    """The hook did not take the message: a Hold that it asked for is over. What becomes of the decision."""
    if message.token != NULL:
        end_token(message, drops)
    if drops.count:
        message.decision = decision  # nobody has control while Python code may run
        flush(drops, dispatcher.reactor)
        if message.decision == TO_CANCEL:
            return TO_CANCEL
    message.decision = UNDECIDED
    return decision


cdef int settle(Message message, object value, int meaning, int early) except -1:
    """Rule 7: the decision that follows from what a hook, or its coroutine, returned and what it gave back before; UNDECIDED
    when it said that it has the message. Raises what it has done wrong by that."""
    message.decision = UNDECIDED
    if meaning == HOLDS:
        message.by_token = <PyObject *>value == message.token
        return UNDECIDED
    if early == TO_FAIL:
        return TO_FAIL
    if meaning == UNKNOWN or early != UNDECIDED and early != meaning:
        message.decision = TO_FAIL
        refuse_result(message, value, UNDECIDED if meaning == UNKNOWN else early)
    if early == UNDECIDED:
        if meaning == TO_COMPLETE:
            message.entry.counters.completes += 1
        elif meaning == TO_RETRY:
            message.entry.counters.retries += 1
    return meaning


cdef int refuse_result(Message message, object value, int early) except -1:
    """Raise what a hook has done wrong, by what it returned."""
    plugin, hook = <str>message.entry.plugin, <str>message.entry.hook
    if early != UNDECIDED:
        raise MqError(f"plugin {plugin} gave the message back in {hook} ({SPELT.get(early, 'fail')}), but then returned "
                      f"{describe(value)}; return HOLD after giving back")
    raise TypeError(f"plugin {plugin} returned {describe(value)} from {hook}; a hook returns False, None, CONTINUE, COMPLETE, "
                    f"RETRY, HOLD (or True), or the Hold of this message")


cdef int hook_raised(Dispatcher dispatcher, Message message, PyObject *raised, Drops *drops) noexcept:
    """Rule 13: a hook raised, or returned what it may not. Stored first, then told. Takes the reference to the error over."""
    error = <object>raised
    Py_DECREF(error)
    cdef Context context = <Context>message.entry.context
    cdef bint ending = ends_program(error)
    if message.decision != TO_CANCEL:
        message.decision = TO_FAIL  # nobody has control while this is logged
        message.fail(error, drops)
    log_failure(context, error, message.entry.hook)
    if ending:
        dispatcher.reactor.raise_through_loop(error)
    if message.decision == TO_CANCEL:
        return TO_CANCEL
    if context.forgiving and not ending and not dispatcher.closed:
        message.fail(None, drops)
        return leave_hook(dispatcher, message, TO_CONTINUE, drops)
    return TO_FAIL


cdef int start_over(Dispatcher dispatcher, Message message, Route route, Drops *drops) noexcept:
    """Rules 5 and 11: from now on the chain is the one that there is now. UNDECIDED, or how the step ends when there were
    too many retries."""
    if dispatcher.closed:
        return closed_meanwhile(message, drops)
    if message.retries >= dispatcher.max_retries:
        message.decision = TO_FAIL  # nobody has control while this is logged
        message.fail_for(TOO_MANY_RETRIES, message.entry.row, drops)
        return log_reason(dispatcher, message)
    message.retries += 1
    if message.chain is not None:
        drop_later(drops, message.chain)
    message.chain = route.chain
    return leave_hook(dispatcher, message, UNDECIDED, drops)


cdef int closed_meanwhile(Message message, Drops *drops) noexcept:
    message.decision = TO_FAIL
    message.fail_for(CLOSED, NULL, drops)
    return TO_FAIL


cdef int log_reason(Dispatcher dispatcher, Message message) noexcept:
    """Log why the step fails, where that is a reason of the core's. How the step ends."""
    if (<int (*)(Dispatcher, Message) noexcept>write_reason)(dispatcher, message) < 0:
        report_raised(dispatcher.reactor, "the telling of a failed step")
    return message.decision


cdef int write_reason(Dispatcher dispatcher, Message message) except -1:
    context = <Context>message.entry.context
    dispatcher.reactor.log(context.log, logging.WARNING, "%s", (message.error,), None)
    return 0


# ------------------------------------------------------------------------------------------------------- The end of a step

cdef PyObject *finish(Dispatcher dispatcher, Message message, int decision, Drops *drops) noexcept:
    """End the step. RUNNING -> IDLE. Returns a borrowed reference to an immortal object, the outcome."""
    cdef PyObject *outcome = <PyObject *>OUTCOME_FAIL
    message.decision = decision
    if decision == TO_CONTINUE:
        outcome = <PyObject *>OUTCOME_CONTINUE
    elif decision == TO_COMPLETE:
        outcome = <PyObject *>OUTCOME_COMPLETE
    elif decision != TO_CANCEL and message.entry != NULL and message.entry.counters != NULL:
        message.entry.counters.failures += 1
    if message.token != NULL:
        end_token(message, drops)
    if message.args is not None:
        drop_later(drops, message.args)
        message.args = None
    if message.chain is not None:
        drop_later(drops, message.chain)
        message.chain = None
        if message.variables is not None:
            drop_later(drops, message.variables)
            message.variables = None
    move(&dispatcher.holds.lists, message, RUNNING, IDLE)
    message.entry = NULL
    message.decision = UNDECIDED
    return outcome


cdef void conclude(Dispatcher dispatcher, Message message, PyObject *outcome) noexcept:
    """Rule 15: tell `done` how a suspended step ended."""
    cdef PyObject *space[3]
    cdef PyObject *result
    done = message.done
    message.done = None
    if not message.suspended:
        return
    message.suspended = False
    if done is None or done is AWAITED:
        return
    hook = <str>message.last_hook
    space[1] = <PyObject *>message
    space[2] = outcome
    result = call_function(<PyObject *>done, space + 1, 2)
    if result == NULL:
        done_raised(dispatcher, take_error(), hook)
    else:
        Py_DECREF(<object>result)


cdef void done_raised(Dispatcher dispatcher, PyObject *error, str hook) noexcept:
    if (<int (*)(Dispatcher, object, str) noexcept>report_done)(dispatcher, <object>error, hook) < 0:
        report_raised(dispatcher.reactor, "done of a step")
    Py_DECREF(<object>error)


cdef int report_done(Dispatcher dispatcher, object error, str hook) except -1:
    dispatcher.reactor.report(error, f"done of {hook}")
    return 0


cdef void end_step(Dispatcher dispatcher, Message message, int decision, int reason) noexcept:
    """End the step of a message that was HELD or QUEUED and is RUNNING now."""
    cdef Drops drops
    no_drops(&drops)
    message.decision = decision
    end_hold(message, &drops)
    message.fail_for(reason, NULL, &drops)
    conclude(dispatcher, message, finish(dispatcher, message, decision, &drops))
    flush(&drops, dispatcher.reactor)


cdef bint cancel_step(Dispatcher dispatcher, Message message) noexcept:
    """Rule 14: end the step that the message is in here, if any, or have it end when its hook returns."""
    cdef HoldTable holds = dispatcher.holds
    cdef Drops drops
    if message.state == IDLE or message.entry == NULL or message.entry.lists != &holds.lists:
        return False
    if message.state == TAKEN or message.state == RUNNING:
        no_drops(&drops)
        message.decision = TO_CANCEL
        message.fail_for(CANCELLED, NULL, &drops)
        if holds.native != NULL:
            native_side.disturb(holds.native)
        flush(&drops, dispatcher.reactor)
        return True
    if message.state == GIVEN_BACK:
        holds.collect_given()
    if message.state == HELD:
        move(&holds.lists, message, HELD, RUNNING)
    else:
        move(&holds.lists, message, QUEUED, RUNNING)
        Py_DECREF(message)  # the queue's reference; the caller has another
    end_step(dispatcher, message, TO_CANCEL, CANCELLED)
    dispatcher.reactor.wake()  # so that an idle dispatcher stops
    return True


cdef void end_all_steps(Dispatcher dispatcher) noexcept:
    """The dispatcher closes."""
    cdef PyObject *taken = dispatcher.holds.take_any()
    while taken != NULL:
        end_step(dispatcher, <Message>taken, TO_FAIL, CLOSED)
        Py_DECREF(<Message>taken)
        taken = dispatcher.holds.take_any()


# ---------------------------------------------------------------------------------------------------------------- Phases

cdef bint timeout_phase(void *owner) noexcept:
    """Rule 10: fail what is held too long, for a while. Whether there is more."""
    cdef Dispatcher dispatcher = <Dispatcher>owner
    cdef HoldTable holds = dispatcher.holds
    cdef Portion portion
    cdef uint64_t now
    cdef PyObject *taken
    cdef PyObject *told = NULL
    if holds.native != NULL:
        native_side.absorb(dispatcher)
    if not holds.lists.deadline.rung:
        return False
    portion = start_portion(dispatcher.reactor.state.uv)
    now = dispatcher.reactor.state.uv.hrtime()
    while goes_on(&portion):
        holds.collect_given()  # what was given back in time is not too late
        taken = holds.take_due(now)
        if taken == NULL:
            holds.arm_next()
            return False
        time_out(dispatcher, <Message>taken, now, &told)
        Py_DECREF(<Message>taken)
        if dispatcher.closed:
            return False
    return True


cdef void time_out(Dispatcher dispatcher, Message message, uint64_t now, PyObject **told) noexcept:
    """The plugin at message.entry held it for too long. Logged once for each plugin and hook of a phase."""
    cdef Drops drops
    no_drops(&drops)
    message.entry.counters.timeouts += 1
    count_held_time(message, now)
    message.decision = TO_FAIL
    message.since = message.entry.bucket.timeout  # for the text of the error
    message.fail_for(TIMED_OUT, message.entry.row, &drops)
    end_hold(message, &drops)
    if told[0] != message.entry.row:
        told[0] = message.entry.row
        log_reason(dispatcher, message)
    conclude(dispatcher, message, finish(dispatcher, message, message.decision, &drops))
    flush(&drops, dispatcher.reactor)


cdef bint resume_phase(void *owner) noexcept:
    """Rule 6: go on with messages that were given back, for a while. Whether there are more."""
    cdef Dispatcher dispatcher = <Dispatcher>owner
    cdef HoldTable holds = dispatcher.holds
    cdef Portion portion
    cdef PyObject *taken
    holds.collect_given()
    if holds.lists.first_queued == NULL:
        return False
    holds.refill()
    portion = start_portion(dispatcher.reactor.state.uv)
    while not dispatcher.closed and holds.lists.first_queued != NULL:
        if not goes_on(&portion):
            return True
        taken = holds.take_queued()
        if (<Message>taken).since:  # else it was counted when other plugins had their turn after the hold
            count_held_time(<Message>taken, dispatcher.reactor.state.uv.hrtime())
        resume(dispatcher, <Message>taken)
        Py_DECREF(<Message>taken)
    return False


cdef inline void count_held_time(Message message, uint64_t now) noexcept:
    message.entry.counters.held_ns += now - message.since
    message.since = 0


cdef bint sweep_phase(void *owner) noexcept:
    return (<Dispatcher>owner).active.sweep()


# ------------------------------------------------------------------------------------------------------- Coroutine hooks

cdef int run_coroutine(Dispatcher dispatcher, Message message, object coroutine, Drops *drops) noexcept:
    """Run the coroutine of a hook in a task, which has control until it returns."""
    cdef int decision = (<int (*)(Dispatcher, Message, object, Drops *) noexcept>start_coroutine)(
        dispatcher, message, coroutine, drops)
    if decision >= 0:
        return decision
    return hook_raised(dispatcher, message, take_error(), drops)


cdef int start_coroutine(Dispatcher dispatcher, Message message, object coroutine, Drops *drops) except -1:
    if dispatcher.reactor.library.owner != "uvloop":
        coroutine.close()
        raise MqError("the hook returned a coroutine, which needs a uvloop loop")
    variables = contextvars.copy_context() if message.variables is None else message.variables.copy()
    task = start_task(coroutine, dispatcher.reactor.loop, f"{<str>message.entry.plugin}:{<str>message.entry.hook}", variables)
    drop_later(drops, task)  # whoever has the last reference may run anybody's code
    if task.done():
        value = result_of(task)
        drop_later(drops, value)
        return interpret(dispatcher, message, value, drops)
    watch_task(task, variables, dispatcher, message, coroutine_ended)
    if dispatcher.closed or message.decision == TO_CANCEL:
        task.cancel()
        return interpret(dispatcher, message, None, drops)
    message.task = task
    message.track()
    hold(dispatcher, message, UNDECIDED, drops)
    return UNDECIDED


cdef void coroutine_ended(object owner, Message message, object task) noexcept:
    """The coroutine of a hook, which has held the message, returned or raised: go on in a tick."""
    cdef Dispatcher dispatcher = <Dispatcher>owner
    cdef Drops drops
    cdef int decision
    if dispatcher.reactor.thread != PyThread_get_thread_ident() and not dispatcher.closed:
        return  # asyncio does not call it there
    cdef PyObject *result = (<PyObject *(*)(object) noexcept>fetch_result)(task)
    no_drops(&drops)
    if result == NULL:
        decision = UNDECIDED
        if message.task is task:  # else the step was ended meanwhile
            decision = coroutine_raised(dispatcher, message, task, take_error(), &drops)
        else:
            Py_DECREF(<object>take_error())
    else:
        drops.items[0] = result
        drops.count = 1
        decision = message.decision
        if message.task is task:
            decision = coroutine_returned(dispatcher, message, task, <object>result, &drops)
    if message.task is task and message.state == HELD:
        message.task = None
        if decision != UNDECIDED:
            message.decision = decision
            Py_INCREF(message)  # the queue's
            dispatcher.holds.collect_given()  # which were given back before it
            move(&dispatcher.holds.lists, message, HELD, QUEUED)
            end_hold(message, &drops)
            dispatcher.reactor.request_tick()
        elif message.strong and finalizer_is_trusted(message):  # it returned true: from now on it may be abandoned
            message.strong = False
            drops.items[drops.count] = <PyObject *>message
            drops.count += 1
    flush(&drops, dispatcher.reactor)


cdef PyObject *fetch_result(object task) except NULL:
    value = result_of(task)
    Py_INCREF(value)
    return <PyObject *>value


cdef int coroutine_returned(Dispatcher dispatcher, Message message, object task, object value, Drops *drops) noexcept:
    """The decision that follows; UNDECIDED when it keeps control, or when the step ended meanwhile."""
    cdef int early = message.decision  # until here a give-back is early
    cdef int decision = (<int (*)(Message, object, int, int) noexcept>settle)(message, value, meaning_of(message, value), early)
    if decision < 0:
        return coroutine_raised(dispatcher, message, task, take_error(), drops)
    return early if decision == UNDECIDED else decision


cdef int coroutine_raised(Dispatcher dispatcher, Message message, object task, PyObject *raised, Drops *drops) noexcept:
    """As hook_raised, for a message that is HELD. While this is told the step may end, and another one begin."""
    error = <object>raised
    Py_DECREF(error)
    cdef Context context = <Context>message.entry.context
    message.decision = TO_FAIL  # nobody has control while this is logged
    message.fail(error, drops)
    log_failure(context, error, message.entry.hook)  # what ends the program asyncio itself lets out through the loop
    if message.task is not task:
        return UNDECIDED
    if context.forgiving and not ends_program(error):
        message.fail(None, drops)
        return TO_CONTINUE
    return TO_FAIL


# --------------------------------------------------------------------------------------------------------------- Helpers

cdef int meaning_of(Message message, object value) noexcept:
    """What a hook said by what it returned: a decision, HOLDS or UNKNOWN."""
    if value is True or value is VERDICT_HOLD or message.token != NULL and <PyObject *>value == message.token:
        return HOLDS
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


cdef str describe(object value):
    """An object that somebody gave, for an error: whatever its repr does."""
    if isinstance(value, Hold):
        return "a Hold that is over or belongs to another message"
    try:
        text = repr(value)
    except Exception:
        text = f"an object of class {type(value).__name__}, whose repr raises"
    return text if len(text) <= 80 else f"{text[:77]}..."


cdef dict SPELT = {TO_CONTINUE: "continue", TO_COMPLETE: "complete", TO_RETRY: "retry"}


# ------------------------------------------------------------------------------------------------------------------ Hook

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
        if self.dispatcher.reactor.library.owner != "uvloop":
            raise MqError(f"await {self.name}(...) needs a uvloop loop; on pyuv use run() with done=")
        return 0

    def _wait_for(self, Message message not None):
        """A Waiter for the step that `_begin_awaited` has begun; None when it has ended already."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.dispatcher = self.dispatcher
        waiter.future = self.dispatcher.reactor.loop.create_future()
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
        variables = self.variables_for(chain)  # first: memory is made, by which anybody's code may run
        self.check_call(args, done)
        if message.state != IDLE:
            raise MqError(f"{self.name}: {in_step(message)}")
        return <object>begin(self.dispatcher, chain, message, IDLE, args, done, variables)

    def run_many(self, messages, *args, done=None):
        """`run` for each of an iterable of messages: a list of what it returned, in order.

        Checks every message before it starts any: raises what `run` raises, also for a message that comes twice, and then
        nothing was started.
        """
        cdef tuple taken = tuple(messages)
        cdef list outcomes = [OUTCOME_CONTINUE] * len(taken)
        cdef Py_ssize_t count = 0
        variables = self.variables_for(self.chain)
        self.check_call(args, done)
        for each in taken:  # no memory is made in here, so nobody's code runs
            if not isinstance(each, Message) or (<Message>each).state != IDLE:
                break
            take(<Message>each, self)
            count += 1
        else:
            return begin_all(self.dispatcher, self, taken, args, done, outcomes, variables)
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

        if self.dispatcher.reactor.library.owner != "uvloop":
            raise MqError(f"{self.name}: stream() needs a uvloop loop; on pyuv use run() with done=")
        self.check_call(args, None)
        return new_stream(self, messages, args, max_in_flight, ordered)

    cdef object variables_for(self, Chain chain):
        """The context variables of now, where coroutine hooks may need them."""
        return contextvars.copy_context() if chain is not None and chain.coroutines else None

    cdef int check_call(self, tuple args, object done) except -1:
        self.dispatcher.reactor.check(self.name)
        if self.chain is None:
            raise MqError(f"{self.name}: the dispatcher is still being made; run messages when that is done")
        if len(args) != self.extra:
            raise TypeError(f"{self.spec.signature}: {len(args)} extra arguments were given, {self.extra} are needed")
        if done is not None and done is not AWAITED and not PyCallable_Check(done):
            raise TypeError(f"{self.name}: done must be callable, not {describe(done)}")
        return 0

    def __repr__(self):
        return f"<mqcore.Hook {self.name}, {0 if self.chain is None else len(self.chain.contexts)} plugins>"


cdef inline void take(Message message, Hook hook) noexcept:
    move(&hook.holds.lists, message, IDLE, TAKEN)
    message.entry = &hook.waiting


cdef void let_go(Message message, Hook hook) noexcept:
    """It is not run after all."""
    if message.state == TAKEN:
        message.entry = NULL
        message.decision = UNDECIDED
        move(&hook.holds.lists, message, TAKEN, IDLE)


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


cdef str in_step(Message message):
    if message.state == HELD:
        return (f"the message is in a step of {<str>message.last_hook} that has not ended: "
                f"plugin {<str>message.entry.plugin} holds it")
    return "the message is in a step that has not ended, or comes twice"


cdef Hook new_hook(Dispatcher dispatcher, str name, object spec):
    cdef Hook hook = Hook.__new__(Hook)
    open_route(hook, name, dispatcher.holds)
    if len(spec.args) > MOST_ARGUMENTS - 2:
        raise MqError(f"{name} has {len(spec.args)} extra arguments; a hook has at most {MOST_ARGUMENTS - 2}")
    hook.spec = spec
    hook.dispatcher = dispatcher
    hook.extra = len(spec.args)
    return hook


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
            cancel_step(self.dispatcher, message)


# ------------------------------------------------------------------------------------------------------------ Dispatcher

@cython.no_gc_clear  # messages, holds and contexts need what it is made of
cdef class Dispatcher:
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
        self.reactor = new_reactor()
        self.holds = new_hold_table(self.reactor)
        self.active = new_active_plugins(self.holds)

    def __init__(self, plugins, loop=None, *, hold_timeout=30.0, max_retries=16):
        cdef double seconds = hold_timeout
        cdef unsigned int retries = as_retries(max_retries)
        if self.life != NEW:
            raise MqError("the dispatcher has been initialised already")
        if not isinstance(plugins, Plugins):
            raise TypeError(f"Dispatcher needs Plugins, not {describe(plugins)}")
        if not 0 <= seconds <= 1e9:
            raise ValueError(f"hold_timeout is in seconds, 0 for none, not {hold_timeout!r}")
        if loop is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                raise MqError("no loop is running: make the dispatcher inside uvloop.run(), or give it loop=") from None
        self.max_retries = retries
        self.active.plugins = plugins
        self.active.hold_timeout = seconds
        for name in plugins.hooks:
            self.active.hooks[name] = new_hook(self, name, plugins.hooks[name])
        self.reactor.open(loop, self)
        self.life = OPENING
        try:
            self.open()
        except BaseException:
            self.end()
            raise
        self.life = OPEN

    cdef int open(self) except -1:
        self.holds.open()
        self.reactor.set_phase(TIMEOUT_PHASE, timeout_phase, <void *>self)
        self.reactor.set_phase(RESUME_PHASE, resume_phase, <void *>self)
        self.reactor.set_phase(SWEEP_PHASE, sweep_phase, <void *>self)
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

    def hook(self, str name not None):
        """The Hook of that name. Raises MqError when there is none, with the nearest name. Any thread."""
        if self.closed:
            raise DispatcherClosed(f"hook({name!r}): the dispatcher is closed")
        if self.life == NEW:
            raise MqError(f"hook({name!r}): the dispatcher has not been initialised")
        hook = self.active.hooks.get(name)
        if hook is None:
            near = difflib.get_close_matches(name, self.active.hooks, 1)
            raise MqError(f"there is no hook {name}" + (f"; did you mean {near[0]}?" if near else "")
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
        if not self.closed:
            self.reactor.check("cancel()")
        elif self.reactor.forked:
            return False
        return cancel_step(self, message)

    def stats(self):
        """The books: a `Stats`. Any thread; also after close()."""
        return Stats(hooks=self.active.stats(), **self.counts())

    cpdef Books counts(self):
        """The books without the plugins' rows, in C a struct: entered, continued, completed, failed, cancelled, held, running.
        Any thread, with the GIL."""
        return self.holds.snapshot()

    def held(self, limit=None, plugin=None, hook=None):
        """The messages that are held now, oldest first: a list of `Held`; empty after close(). The dispatcher's thread.

        `limit`: at most so many. `plugin`, `hook`: those of one plugin or hook only. Without these it takes as long as the list
        is, whatever else is held; with them, at most as long as all that is held.
        """
        cdef Py_ssize_t most = -1 if limit is None else limit
        if limit is not None and most < 0:
            raise ValueError(f"limit is a number of messages, or None for all, not {limit!r}")
        if self.closed or self.life == NEW:
            return []
        self.reactor.check("held()")
        cdef list found = []
        rows = self.holds.oldest(most, plugin, hook)
        cdef uint64_t now = self.reactor.state.uv.hrtime()
        for message, by, where, since in rows:
            found.append(Held(message, by, where, (now - <uint64_t>since) / 1e9))
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
        if not self.closed and not self.reactor.forked:
            self.reactor.check("close()")
        self.end()
        if self.reactor.escaped is not None:
            error, self.reactor.escaped = self.reactor.escaped, None
            raise error

    cdef int end(self) except -1:
        """Each part may be ended more than once: where one is interrupted, another call goes on."""
        if self.ending_now:
            return 0  # called by what it calls
        self.ending_now = True
        try:
            self.closed = True
            self.reactor.closed = True
            self.reactor.thread = 0
            if not self.reactor.forked:
                end_all_steps(self)
                self.active.close()
                if self.holds.native != NULL:
                    native_side.close(self)
                self.reactor.stop_all()
            self.holds.close()
            self.reactor.close()
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

    def _prepare(self, tuple plugins not None):
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


seal(Hook)
seal(Waiter)
