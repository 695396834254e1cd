"""The way of a message through a chain of plugins.

`advance` is the heart: it calls one plugin after the other until one takes control or the step is decided. A step that nobody
holds allocates nothing and looks nothing up: a chain is a flat array, and the message carries its place in it. A step that was
suspended goes on in a tick, by `resume`.

While a hook is called, and until what it returned has been looked at, the message is RUNNING: whatever anybody's code does in
the meantime can only mark it (`Message.decision`), and that is read anew. Once it is HELD or IDLE nothing runs before the books
are in order; what is to be dropped by then waits in `Drops`, and each way into this module ends with flush().
"""

import logging

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t

from ._chain cimport Chain, Route
from ._context cimport Context, log_failure
from ._coroutine cimport RAISED, WAITS, Driver, give_up, is_coroutine, start as start_coroutine, wait_for_end
from ._holds cimport HoldTable, count_given
from ._message cimport (
    CANCELLED, CLOSED, ABANDONED, GIVEN_BACK, HELD, IDLE, NO_REFERENCE, QUEUED, RUNNING, STRONG, TAKEN, TIMED_OUT,
    TOO_MANY_RETRIES, TO_CANCEL, TO_COMPLETE, TO_CONTINUE, TO_FAIL, TO_RETRY, UNDECIDED, WEAK, CounterRow, Counters, Drops,
    Entry, Message, NativeSide, cancel_later, count_held_time, drop_later, end_hold, end_token, finalizer_is_trusted, flush,
    move, no_drops, put_aside, report_raised, unless_skipping)
from ._task_pool cimport close_pool, let_go, new_pool, take_driver
from .loop._call cimport ROOM, call_function, ends_program, take_error
from .loop._reactor cimport Caller, Portion, PyThread_get_thread_ident, Reactor, has_budget, start_portion
from .loop._seal cimport seal
from .loop._state cimport set_caller

from ._misuse import wrong_result
from .verdicts import COMPLETE, CONTINUE, FAIL, HOLD, RETRY

cdef extern from *:
    """
    /* Where threads run at once, they would spend their time with counting the references to what all hooks return. */
    #ifdef Py_GIL_DISABLED
    #define mqcore_make_immortal(object) Py_SET_REFCNT(object, (Py_ssize_t)UINT32_MAX + 1)
    #else
    #define mqcore_make_immortal(object) ((void)0)
    #endif
    """
    void make_immortal "mqcore_make_immortal"(object) noexcept

cdef extern from "Python.h":
    PyObject *Py_None
    PyObject *Py_False
    object copy_context "PyContext_CopyCurrent"()
    object copy_of_context "PyContext_Copy"(object)
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
make_immortal(OUTCOME_CONTINUE)
make_immortal(OUTCOME_COMPLETE)
make_immortal(OUTCOME_FAIL)
make_immortal(VERDICT_HOLD)
make_immortal(VERDICT_RETRY)


@cython.final
@cython.no_gc_clear  # what the functions here need is there as long as it is
cdef class Runner:
    pass


cdef Runner new_runner(Reactor reactor, HoldTable holds):
    cdef Runner runner = Runner.__new__(Runner)
    runner.reactor = reactor
    runner.holds = holds
    runner.done.hook = b"done"
    reactor.state.calling = &runner.calling
    return runner


# ---------------------------------------------------------------------------------------------------------- Into the chain

cdef PyObject *begin(Runner runner, Chain chain, Message message, tuple args, object done, object variables) noexcept:
    """The step of a message that the caller has just moved to RUNNING. Returns a borrowed reference to an immortal object, an
    outcome or None; the caller must own `chain`."""
    cdef Drops drops
    cdef PyObject *outcome
    cdef int decision
    no_drops(&drops)
    message.retries = 0
    message.last_hook = chain.entries.hook
    if message.failure is not None and message.decision == UNDECIDED:
        message.fail(None, &drops)
    if size_of(args):
        message.args = args
    if variables is not None:
        message.variables = variables
    decision = advance(runner, message, chain, chain.entries, &drops)
    outcome = begun(runner, chain, message, decision, args, done, variables, &drops)
    flush(&drops, runner.reactor)
    return outcome


cdef PyObject *begun(
        Runner runner, Chain chain, Message message, int decision, tuple args, object done, object variables,
        Drops *drops) noexcept:
    """What `begin` returns, once the plugins have been called."""
    if decision != UNDECIDED:
        return finish(runner, message, decision, drops)
    return suspend(chain, message, args, done, variables)


cdef PyObject *suspend(Chain chain, Message message, tuple args, object done, object variables) noexcept:
    """A plugin holds the message: keep what is needed when it goes on."""
    if message.chain is None:
        message.chain = chain
    message.suspended = True
    message.done = done
    if done is not None or size_of(args) or variables is not None:
        message.track()
    return Py_None


cdef int advance(Runner runner, Message message, Chain chain, Entry *entry, Drops *drops) noexcept:
    """Rules 1 to 5: call plugins, from `entry` on. Returns how the step ends, or UNDECIDED when it is suspended."""
    cdef PyObject *space[MOST_ARGUMENTS + 1]
    cdef PyObject **arguments = space + 1  # a bound method uses the place before the first
    cdef size_t count = 2
    cdef PyObject *result
    cdef int decision
    cdef Caller *caller
    arguments[1] = <PyObject *>message
    if message.args is not None:
        while count < size_of(message.args) + 2:
            arguments[count] = item_of(message.args, count - 2)  # message.args keeps it
            count += 1
    count |= ROOM
    cdef bint timed = is_sampled(&runner.until_sample)
    if message.decision == TO_CANCEL:  # run_many() had taken it, and a hook of one before it cancelled it
        return TO_CANCEL
    while True:
        if runner.closed:
            return closed_meanwhile(message, drops)
        if entry.function == NULL:
            if entry.native == NULL:
                return TO_CONTINUE
            # And those that follow, if they are native.
            decision = (<NativeSide>runner.holds.lists.native).call(message, entry, timed, drops)
            entry = message.entry
        else:
            message.entry = entry
            arguments[0] = entry.context
            caller = &entry.counters.caller
            caller.calls += 1
            set_caller(&runner.calling, caller)
            if timed:
                result = call_timed(runner, entry, arguments, count)
            else:
                result = call_function(entry.function, arguments, count)
            if ((result == Py_False or result == Py_None) and message.decision | message.skipping == UNDECIDED
                    and message.token == NULL):
                Py_DECREF(<object>result)
                entry += 1
                continue
            decision = returned(runner, message, result, drops)
        if decision == TO_CONTINUE:
            entry += 1
        elif decision == TO_RETRY:
            decision = start_over(runner, message, chain.route, drops)
            if decision != UNDECIDED:
                return decision
            entry = (<Chain>message.chain).entries
        else:
            break
    return decision


cdef PyObject *call_timed(Runner runner, Entry *entry, PyObject **arguments, size_t count_and_room) noexcept:
    """Call one hook in so many by the clock."""
    cdef Counters *counters = entry.counters
    cdef uint64_t start = runner.reactor.state.uv.hrtime()
    cdef PyObject *result = call_function(entry.function, arguments, count_and_room)
    add_sample(counters, runner.reactor.state.uv.hrtime() - start)
    return result


cdef list begin_all(
        Runner runner, Route route, tuple messages, tuple args, object done, list outcomes, object variables):
    """`begin` for messages that are TAKEN, each with the chain as it is by then. `outcomes` has CONTINUE for each."""
    cdef PyObject *outcome
    cdef Py_ssize_t count = len(messages)
    cdef Py_ssize_t index = 0
    cdef Chain chain
    cdef Caller *before = runner.calling
    while index < count:
        if route.chain is not None:  # else a hook has closed the dispatcher
            chain = route.chain
        if chain.native and not args and not runner.closed:
            index = (<NativeSide>runner.holds.lists.native).run_many(chain, messages, index, outcomes, done, variables)
        else:
            move(&runner.holds.lists, <Message>messages[index], TAKEN, RUNNING)
            outcome = begin(runner, chain, <Message>messages[index], args, done, variables)
            if outcome != <PyObject *>OUTCOME_CONTINUE:
                Py_INCREF(<object>outcome)
                PyList_SetItem(outcomes, index, outcome)
            index += 1
    set_caller(&runner.calling, before)
    return outcomes


cdef void resume(Runner runner, Message message) noexcept:
    """Go on with a suspended step as message.decision says. In a tick."""
    cdef Drops drops
    cdef Chain chain = <Chain>message.chain
    cdef int decision
    no_drops(&drops)
    decision = proceed(runner, message, chain, message.decision, &drops)
    if decision != UNDECIDED:
        conclude(runner, message, finish(runner, message, decision, &drops))
    flush(&drops, runner.reactor)


cdef int proceed(Runner runner, Message message, Chain chain, int decision, Drops *drops) noexcept:
    """Go on as the plugin at message.entry has it: how the step ends, or UNDECIDED when it is suspended."""
    decision = unless_skipping(message, decision)
    if decision == TO_CONTINUE:
        message.decision = UNDECIDED
        return advance(runner, message, chain, message.entry + 1, drops)
    if decision == TO_RETRY:
        decision = start_over(runner, message, chain.route, drops)
        if decision == UNDECIDED:
            return advance(runner, message, chain, (<Chain>message.chain).entries, drops)
    elif decision == TO_FAIL and message.reason == ABANDONED:
        message.entry.counters.abandoned += 1
        end_hold(message, drops)  # the finalizer only queued it
        return log_reason(runner, message)
    return decision


# --------------------------------------------------------------------------------------------------- What a hook returned

cdef int returned(Runner runner, Message message, PyObject *result, Drops *drops) noexcept:
    """What follows from the result of a Python hook, which may be NULL."""
    if result == NULL:
        return hook_raised(runner, message, take_error(), drops)
    put_aside(drops, result)  # dropped when the step is suspended or goes on
    return interpret(runner, message, <object>result, drops)


cdef int interpret(Runner runner, Message message, object value, Drops *drops) noexcept:
    """What follows from what a hook returned."""
    cdef int meaning = parse_verdict(message, value)
    cdef int decision
    if meaning == UNKNOWN and not runner.closed:
        decision = (<int (*)(object) noexcept>is_coroutine)(value)
        if decision < 0:
            return hook_raised(runner, message, take_error(), drops)
        if decision:
            return run_coroutine(runner, message, value, drops)
    return follow(runner, message, value, meaning, drops)


cdef int follow(Runner runner, Message message, object value, int meaning, Drops *drops) noexcept:
    """What follows from the value that a hook returned, or its coroutine before the hook was over, and from its meaning."""
    cdef int decision
    if runner.closed:
        return closed_meanwhile(message, drops)
    # Read only now: another thread may give back as long as Python code runs.
    cdef int early = message.decision
    if early == TO_CANCEL:
        return TO_CANCEL
    decision = (<int (*)(Message, object, int, int) noexcept>resolve_early)(message, value, meaning, early)
    if decision < 0:
        return hook_raised(runner, message, take_error(), drops)
    if decision == UNDECIDED:
        hold(runner, message, early, drops)
        return UNDECIDED
    return leave_hook(runner, message, decision, drops)


cdef void hold(Runner runner, Message message, int early, Drops *drops) noexcept:
    """The plugin at message.entry has the message now. RUNNING -> HELD, and where it gave back before (rule 7) -> QUEUED."""
    if message.task is not None or message.by_state.native != NULL or not finalizer_is_trusted(message):
        message.reference = STRONG
        Py_INCREF(message)
    else:
        message.reference = WEAK
    move(&runner.holds.lists, message, RUNNING, HELD)
    if early == UNDECIDED:
        return
    message.decision = early
    runner.holds.end_and_queue(message, drops)


cdef int leave_hook(Runner runner, Message message, int decision, Drops *drops) noexcept:
    """The hook did not take the message: a Hold that it asked for is over. What becomes of the decision."""
    if message.token != NULL:
        end_token(message, drops)
    if drops.count:
        message.decision = decision  # nobody has control while Python code may run
        flush(drops, runner.reactor)
        if message.decision == TO_CANCEL:
            return TO_CANCEL
    message.decision = UNDECIDED
    return unless_skipping(message, decision)


cdef int resolve_early(Message message, object value, int meaning, int early) except -1:
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
        plugin, hook = <str>message.entry.plugin, <str>message.entry.hook  # now, for the step may end by what is called here
        if meaning == UNKNOWN and is_coroutine(value):  # what a coroutine returned, which is not run: that could go on for ever
            value.close()
        raise wrong_result(plugin, hook, value, UNDECIDED if meaning == UNKNOWN else early)
    if early == UNDECIDED:
        if meaning == TO_COMPLETE:
            message.entry.counters.completes += 1
        elif meaning == TO_RETRY:
            message.entry.counters.retries += 1
    return meaning


cdef int hook_raised(Runner runner, Message message, PyObject *raised, Drops *drops) noexcept:
    """Rule 13: a hook raised, or returned what it may not. Stored first, then logged. Steals the reference to the error."""
    error = <object>raised
    Py_DECREF(error)
    cdef Context context = <Context>message.entry.context
    cdef bint ending = ends_program(error)
    if message.decision != TO_CANCEL:
        message.decision = TO_FAIL  # nobody has control while this is logged
        message.fail(error, drops)
    log_failure(context, error, message.entry.hook)
    if ending:
        runner.reactor.raise_through_loop(error)
    if message.decision == TO_CANCEL:
        return TO_CANCEL
    if context.forgiving and not ending and not runner.closed:
        message.fail(None, drops)
        return leave_hook(runner, message, TO_CONTINUE, drops)
    return TO_FAIL


cdef int start_over(Runner runner, Message message, Route route, Drops *drops) noexcept:
    """Rules 5 and 11: from now on the chain is the one that there is now. UNDECIDED, or how the step ends when there were
    too many retries."""
    if runner.closed:
        return closed_meanwhile(message, drops)
    if message.retries >= runner.max_retries:
        message.decision = TO_FAIL  # nobody has control while this is logged
        message.entry.counters.retry_limits += 1
        message.fail_for(TOO_MANY_RETRIES, message.entry.row, drops)
        return log_reason(runner, message)
    message.retries += 1
    if message.chain is not None:
        drop_later(drops, message.chain)
    message.chain = route.chain
    return leave_hook(runner, message, UNDECIDED, drops)


cdef int closed_meanwhile(Message message, Drops *drops) noexcept:
    message.decision = TO_FAIL
    message.fail_for(CLOSED, NULL, drops)
    return TO_FAIL


cdef int log_reason(Runner runner, Message message) noexcept:
    """Log why the step fails, where that is a reason of the core's. How the step ends."""
    if (<int (*)(Runner, Message) noexcept>write_reason)(runner, message) < 0:
        report_raised(runner.reactor, "the logging of a failed step")
    return message.decision


cdef int write_reason(Runner runner, Message message) except -1:
    context = <Context>message.entry.context
    runner.reactor.log(context.log, logging.WARNING, "%s", (message.error,), None)
    return 0


# ------------------------------------------------------------------------------------------------------- The end of a step

cdef PyObject *finish(Runner runner, Message message, int decision, Drops *drops) noexcept:
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
    move(&runner.holds.lists, message, RUNNING, IDLE)
    message.entry = NULL
    message.decision = UNDECIDED
    return outcome


cdef void conclude(Runner runner, Message message, PyObject *outcome) noexcept:
    """Rule 15: call `done` with how a suspended step ended."""
    cdef PyObject *space[3]
    cdef PyObject *result
    cdef Caller *before
    done = message.done
    message.done = None
    if not message.suspended:
        return
    message.suspended = False
    if done is None:
        return
    hook = <str>message.last_hook
    space[1] = <PyObject *>message
    space[2] = outcome
    before = runner.calling
    runner.done.calls += 1
    set_caller(&runner.calling, &runner.done)
    result = call_function(<PyObject *>done, space + 1, 2 | ROOM)
    set_caller(&runner.calling, before)
    if result == NULL:
        done_raised(runner, take_error(), hook)
    else:
        Py_DECREF(<object>result)


cdef void done_raised(Runner runner, PyObject *error, str hook) noexcept:
    if (<int (*)(Runner, object, str) noexcept>report_done)(runner, <object>error, hook) < 0:
        report_raised(runner.reactor, "done of a step")
    Py_DECREF(<object>error)


cdef int report_done(Runner runner, object error, str hook) except -1:
    runner.reactor.report(error, f"done of {hook}")
    return 0


cdef void end_step(Runner runner, Message message, int decision, int reason) noexcept:
    """End the step of a message that was HELD or QUEUED and is RUNNING now."""
    cdef Drops drops
    no_drops(&drops)
    if message.since:
        count_held_time(message, runner.reactor.state.uv.hrtime())
    message.decision = decision
    end_hold(message, &drops)
    message.fail_for(reason, NULL, &drops)
    conclude(runner, message, finish(runner, message, decision, &drops))
    flush(&drops, runner.reactor)


cdef bint cancel_step(Runner runner, Message message) noexcept:
    """Rule 14: end the step that the message is in here, if any, or have it end when its hook returns."""
    cdef HoldTable holds = runner.holds
    cdef Drops drops
    if message.state == IDLE or message.entry == NULL or message.entry.lists != &holds.lists:
        return False
    if message.state == TAKEN or message.state == RUNNING:
        no_drops(&drops)
        message.decision = TO_CANCEL
        message.fail_for(CANCELLED, NULL, &drops)
        holds.lists.fast_path_off = True
        flush(&drops, runner.reactor)
        return True
    if message.state == GIVEN_BACK:
        holds.collect(message)
    if message.state == HELD:
        move(&holds.lists, message, HELD, RUNNING)
    else:
        move(&holds.lists, message, QUEUED, RUNNING)
        Py_DECREF(message)  # the queue's reference; the caller has another
    end_step(runner, message, TO_CANCEL, CANCELLED)
    runner.reactor.wake()  # so that an idle dispatcher stops
    return True


cdef void end_all_steps(Runner runner) noexcept:
    """The dispatcher closes."""
    cdef PyObject *taken = runner.holds.take_any()
    while taken != NULL:
        end_step(runner, <Message>taken, TO_FAIL, CLOSED)
        Py_DECREF(<Message>taken)
        taken = runner.holds.take_any()
    if runner.tasks is not None:
        close_pool(runner.tasks)


# ---------------------------------------------------------------------------------------------------------------- Phases

cdef bint timeout_phase(void *owner) noexcept:
    """Rule 10: fail what is held too long, for a while. Whether there is more."""
    cdef Runner runner = <Runner>owner
    cdef HoldTable holds = runner.holds
    cdef Portion portion
    cdef uint64_t now
    cdef PyObject *taken
    cdef PyObject *logged = NULL
    if not holds.lists.deadline.rung:
        return False
    portion = start_portion(runner.reactor.state.uv)
    now = runner.reactor.state.uv.hrtime()
    while not runner.closed and has_budget(&portion):
        if holds.has_dead() and holds.replace_dead():  # so that nothing dead is before what is due
            continue
        if holds.collect_one():  # what was given back in time is not too late
            continue
        taken = holds.take_due(now)
        if taken == NULL:
            holds.arm_next()
            return False
        if not queue_if_given(runner, <Message>taken):
            time_out(runner, <Message>taken, now, &logged)
        Py_DECREF(<Message>taken)
    return not runner.closed


cdef bint queue_if_given(Runner runner, Message message) noexcept:
    """A native plugin gave it back, and the dispatcher has not come to that yet: it is not too late. RUNNING -> QUEUED."""
    cdef int decision = UNDECIDED
    cdef Drops drops
    no_drops(&drops)
    if message.by_state.native != NULL:
        decision = (<NativeSide>runner.holds.lists.native).claim(message, &drops)
    if decision == UNDECIDED:
        return False
    message.reference = NO_REFERENCE  # it is the queue's now
    message.decision = decision
    count_given(message.entry.counters, decision)
    move(&runner.holds.lists, message, RUNNING, QUEUED)
    runner.reactor.request_tick()
    flush(&drops, runner.reactor)
    return True


cdef void time_out(Runner runner, Message message, uint64_t now, PyObject **logged) noexcept:
    """The plugin at message.entry held it for too long. Logged once for each plugin and hook of a phase."""
    cdef Drops drops
    no_drops(&drops)
    message.entry.counters.timeouts += 1
    count_held_time(message, now)
    message.decision = TO_FAIL
    message.since = message.entry.bucket.timeout  # for the text of the error
    message.fail_for(TIMED_OUT, message.entry.row, &drops)
    end_hold(message, &drops)
    if logged[0] != message.entry.row:
        logged[0] = message.entry.row
        log_reason(runner, message)
    conclude(runner, message, finish(runner, message, message.decision, &drops))
    flush(&drops, runner.reactor)


cdef bint resume_phase(void *owner) noexcept:
    """Rule 6: go on with messages that were given back, for a while. Whether there are more."""
    cdef Runner runner = <Runner>owner
    cdef HoldTable holds = runner.holds
    cdef Portion portion
    cdef PyObject *taken
    if not holds.has_queued() and not holds.has_dead():
        return False
    portion = start_portion(runner.reactor.state.uv)
    while holds.has_dead() and has_budget(&portion) and holds.replace_dead():
        pass
    holds.refill()
    while not runner.closed and holds.has_queued():
        if not has_budget(&portion):
            return True
        taken = holds.take_queued()
        if (<Message>taken).since:  # else it was counted when other plugins had their turn after the hold
            count_held_time(<Message>taken, runner.reactor.state.uv.hrtime())
        resume(runner, <Message>taken)
        Py_DECREF(<Message>taken)
    return holds.has_dead()


# ------------------------------------------------------------------------------------------------------- Coroutine hooks

cdef int run_coroutine(Runner runner, Message message, object coroutine, Drops *drops) noexcept:
    """Run the coroutine of a hook in a task, which has control until it returns."""
    cdef PyObject *result = (<PyObject *(*)(Runner, Message, object) noexcept>driver_for)(runner, message, coroutine)
    cdef Driver driver
    cdef int progress
    if result == NULL:
        return hook_raised(runner, message, give_up(runner.reactor, coroutine), drops)
    put_aside(drops, result)
    driver = <Driver>result
    progress = start_coroutine(driver, &result)
    if progress == WAITS:
        return wait_for_coroutine(runner, message, driver, drops)
    let_go(runner.tasks, driver, drops)
    if progress == RAISED:
        return hook_raised(runner, message, result, drops)
    put_aside(drops, result)
    return follow(runner, message, <object>result, parse_verdict(message, <object>result), drops)


cdef PyObject *driver_for(Runner runner, Message message, object coroutine) except NULL:
    """A new reference to what is to run it."""
    if runner.tasks is None:
        runner.tasks = new_pool(runner.reactor)
    variables = copy_context() if message.variables is None else copy_of_context(message.variables)
    driver = take_driver(runner.tasks, coroutine, variables, <CounterRow>message.entry.row)
    Py_INCREF(driver)
    return <PyObject *>driver


cdef int wait_for_coroutine(Runner runner, Message message, Driver driver, Drops *drops) noexcept:
    """It has control until it is over, unless the step is over."""
    wait_for_end(driver, runner, message, coroutine_ended)
    if runner.closed or message.decision == TO_CANCEL:
        cancel_later(drops, driver)
        return follow(runner, message, None, TO_CONTINUE, drops)
    message.task = driver
    message.track()
    hold(runner, message, UNDECIDED, drops)
    return UNDECIDED


cdef void coroutine_ended(object owner, Message message, Driver driver, int progress, PyObject *result) noexcept:
    """The coroutine of a hook, which has held the message, returned or raised: go on in a tick. Steals `result`."""
    cdef Runner runner = <Runner>owner
    cdef Drops drops
    no_drops(&drops)
    put_aside(&drops, result)
    if message.task is driver and (runner.reactor.thread == PyThread_get_thread_ident() or runner.closed):
        follow_end(runner, message, driver, progress, result, &drops)
    # Else the step was ended meanwhile; or this is the child of a fork.
    let_go(runner.tasks, driver, &drops)
    flush(&drops, runner.reactor)


cdef void follow_end(
        Runner runner, Message message, Driver driver, int progress, PyObject *result, Drops *drops) noexcept:
    """What follows from the end of the coroutine that holds the message."""
    cdef int decision
    if progress == RAISED:
        Py_INCREF(<object>result)
        decision = coroutine_raised(runner, message, driver, result, drops)
    else:
        decision = coroutine_returned(runner, message, driver, <object>result, drops)
    if message.task is driver and message.state == HELD:
        message.task = None
        if decision != UNDECIDED:
            message.decision = decision
            runner.holds.end_and_queue(message, drops)
        elif message.reference == STRONG and finalizer_is_trusted(message):  # it returned true: it may be abandoned now
            message.reference = WEAK
            put_aside(drops, <PyObject *>message)


cdef int coroutine_returned(Runner runner, Message message, Driver driver, object value, Drops *drops) noexcept:
    """The decision that follows; UNDECIDED when it keeps control, or when the step ended meanwhile."""
    cdef int early = message.decision  # until here a give-back is early
    cdef int decision = (<int (*)(Message, object, int, int) noexcept>resolve_early)(
        message, value, parse_verdict(message, value), early)
    cdef PyObject *raised
    if decision < 0:
        raised = take_error()
        if ends_program(<object>raised):
            runner.reactor.raise_through_loop(<object>raised)
        return coroutine_raised(runner, message, driver, raised, drops)
    return early if decision == UNDECIDED else decision


cdef int coroutine_raised(Runner runner, Message message, Driver driver, PyObject *raised, Drops *drops) noexcept:
    """As hook_raised, for a message that is HELD. Its step may have ended meanwhile, or end while this is logged, and another
    one begin."""
    error = <object>raised
    Py_DECREF(error)
    if message.task is not driver:
        return UNDECIDED
    cdef Context context = <Context>message.entry.context
    message.decision = TO_FAIL  # nobody has control while this is logged
    message.fail(error, drops)
    log_failure(context, error, message.entry.hook)
    if message.task is not driver:
        return UNDECIDED
    if context.forgiving and not ends_program(error):
        message.fail(None, drops)
        return TO_CONTINUE
    return TO_FAIL


# --------------------------------------------------------------------------------------------------------------- Helpers

cdef int parse_verdict(Message message, object value) noexcept:
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


seal(Runner)
