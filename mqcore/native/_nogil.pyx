# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""What a tick begins with: the part of it that needs no GIL, which is native plugins.

The callbacks of their watchers and timers are called, and messages that they gave back go on, from one native hook to the
next. Where a Python plugin comes next, or the end of the step, which `done` is told, the message is queued as if it had just
been given back: the tick takes the GIL once for all of these. Nothing else of Python is touched in between. The hold's
reference to the message goes from one native hold to the next, and then to the queue.

What is rare takes the GIL where it comes up: letting go of strings that a plugin was handed out, and a hook that contradicts
itself, or whose step or dispatcher was ended in the middle.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

from .._chain cimport Chain
from .._dispatch cimport Runner, is_sampled, resume
from .._holds cimport count_given
from .._message cimport (
    HELD, NO_REFERENCE, QUEUED, RUNNING, STRONG, TO_CONTINUE, TO_FAIL, TO_RETRY, UNDECIDED, Drops, Entry, HoldLists, Message,
    NativeSide, count_held_time, flush, move, no_drops)
from ..loop._atomic cimport get, load, set_byte, store, store_flag, swap
from ..loop._list cimport first, is_empty, unlink
from ..loop._poll cimport lost_for, remove_watch
from ..loop._reactor cimport Portion, Reactor, Watch, first_ready, has_budget, request_tick, start_portion, unlink_ready
from ..loop._wheel cimport DUE_NOGIL, first_due
from ._arguments cimport Arguments, find_arguments
from ._diagnostics cimport log_records, record_late
from ._failures cimport early_decision, fail, forget_reasons
from ._hooks cimport (
    NativeFrame, call_hooks, decide, enter, hold_by, is_exhausted, leave, new_generation, put_back)
from ._queue cimport has_any, take
from ._slots cimport (
    CALLED, CONTEXT, FREE, GIVEN, HELD_BY, OVER, STEP, TIMER, Slot, Table, end_slot, free_slot, generation_of, get_kind,
    handle_of, live_slot, slot_at, state_of, take_slot, this_thread, word_of)


cdef bint nogil_phase(void *owner) noexcept nogil:
    """Whether there is more to do that needs no GIL, in the next tick."""
    cdef HoldLists *lists = &(<Runner>owner).holds.lists
    return call_native(<Runner>owner, (<Runner>owner).reactor, <Table *>(<NativeSide>lists.native).table)


cdef bint gil_phase(void *owner) noexcept:
    """Log what there is to be logged, for a while. Whether there is more."""
    cdef Runner runner = <Runner>owner
    cdef Table *table = <Table *>(<NativeSide>runner.holds.lists.native).table
    return has_any(&table.records) and log_records(runner, table)


cdef bint call_native(Runner runner, Reactor reactor, Table *table) noexcept nogil:
    if not is_empty(&table.ending):
        stop_ended(reactor, table)
    call_watchers(reactor, table)
    call_timers(reactor, table)
    if reactor.thread == 0:  # closed by what was called: the table may be another dispatcher's by now
        return False
    resume_given(runner, table)
    if has_any(&table.records):
        store_flag(&reactor.state.gil_needed, True)
    return (reactor.state.ready_count[True] > 0 or reactor.wheel.due_nogil > 0 or has_any(&table.given)
            or not is_empty(&table.ending))


# --------------------------------------------------------------------------------------------------- Timers and watchers

cdef void call_watchers(Reactor reactor, Table *table) noexcept nogil:
    cdef Portion portion = start_portion(reactor.state.uv)
    cdef size_t count = reactor.state.ready_count[True]  # what becomes ready meanwhile is for the next tick
    cdef Slot *watcher
    cdef Watch *watch
    cdef int events, lost
    while count > 0 and reactor.state.ready_count[True] > 0 and reactor.thread != 0 and has_budget(&portion):
        count -= 1
        watch = first_ready(&reactor.state, True)
        watcher = <Slot *>(<char *>watch - <size_t>&(<Slot *>NULL).waiting.watch)
        unlink_ready(&reactor.state, watch)
        lost = lost_for(watch)
        events = 0 if lost else watch.came & watch.wanted  # what came before it was lost is lost with it
        watch.came = 0
        if is_of_ended(table, watcher):
            stop(table, watcher)
        elif lost or events:
            call_watcher(table, watcher, events)


cdef void call_watcher(Table *table, Slot *watcher, int events) noexcept nogil:
    """Its fd is ready, or with events 0: it was closed, and that is the end of it."""
    cdef void *handle = handle_of(watcher)
    cdef void *callback = watcher.callback
    cdef void *data = watcher.data
    cdef int fd = watcher.fd
    cdef NativeFrame before
    enter(table, watcher.owner, NULL, NULL, this_thread(), &before)
    if events == 0:
        stop(table, watcher)
    (<void (*)(void *, int, int, void *) noexcept nogil>callback)(handle, fd, events, data)
    leave(table, &before)


cdef void call_timers(Reactor reactor, Table *table) noexcept nogil:
    cdef Portion portion = start_portion(reactor.state.uv)
    cdef size_t count = reactor.wheel.due_nogil  # those that become due meanwhile are for the next tick
    cdef Slot *timer
    cdef void *callback
    cdef void *data
    cdef NativeFrame before
    while count > 0 and reactor.wheel.due_nogil > 0 and reactor.thread != 0 and has_budget(&portion):
        count -= 1
        timer = <Slot *>(<char *>first_due(&reactor.wheel, DUE_NOGIL) - <size_t>&(<Slot *>NULL).waiting.node)
        if is_of_ended(table, timer):
            stop(table, timer)
            continue
        callback = timer.callback
        data = timer.data
        enter(table, timer.owner, NULL, NULL, this_thread(), &before)
        stop(table, timer)
        (<void (*)(void *) noexcept nogil>callback)(data)
        leave(table, &before)


cdef inline bint is_of_ended(Table *table, Slot *slot) noexcept nogil:
    """Whether a timer or watcher waits to be stopped, as its context is over."""
    return not is_empty(&table.ending) and live_slot(slot.owner, CONTEXT) == NULL


cdef void stop_ended(Reactor reactor, Table *table) noexcept nogil:
    cdef Portion portion = start_portion(reactor.state.uv)
    while not is_empty(&table.ending) and has_budget(&portion):
        stop(table, slot_at(first(&table.ending)))


cdef void stop(Table *table, Slot *slot) noexcept nogil:
    """Stop a timer or watcher; its handle is stale. The dispatcher's thread."""
    if get_kind(&slot.kind) == TIMER:
        (<Runner>table.owner).reactor.stop_node(&slot.waiting.node)
    else:
        remove_watch(&(<Runner>table.owner).reactor.state, &slot.waiting.watch)
    unlink(&slot.link)
    end_slot(table, slot)


# -------------------------------------------------------------------------------------------------------------- Messages

cdef void resume_given(Runner runner, Table *table) noexcept nogil:
    """Go on with messages that were given back, for a while. Of a dispatcher that is closed all are over."""
    cdef Portion portion = start_portion(runner.reactor.state.uv)
    cdef uint64_t now = runner.reactor.state.uv.hrtime()
    cdef Slot *slot
    cdef int decision
    cdef bint all = runner.closed
    while has_any(&table.given) and (all or not runner.closed and has_budget(&portion)):
        slot = <Slot *>take(&table.given)
        if slot == NULL:
            break
        decision = state_of(load(&slot.word)) - GIVEN
        if decision <= 0:
            if decision == OVER - GIVEN:
                record_late(table, slot)
            forget_reasons(slot)
            store(&slot.word, word_of(generation_of(get(&slot.word)), FREE))
            free_slot(table, slot)
        elif resume_natively(runner, table, slot, <Message>slot.object, decision, now):
            now = runner.reactor.state.uv.hrtime()  # only hooks take time, and to look at the clock does


cdef bint resume_natively(
        Runner runner, Table *table, Slot *slot, Message message, int decision, uint64_t now) noexcept nogil:
    """Go on with a message that its native plugin gave back, as far as native plugins go. HELD -> HELD, QUEUED, or IDLE.
    Whether any hook was called."""
    cdef Entry *entry
    cdef Arguments arguments
    cdef bint called = False
    count_given(message.entry.counters, decision)
    count_held_time(message, max(now, message.since))  # it may have begun after `now`, and was over at once
    move(&runner.holds.lists, message, HELD, RUNNING)
    message.decision = decision
    message.by_state.native = NULL
    set_byte(&message.reference, NO_REFERENCE)  # it is ours now
    if decision == TO_FAIL:
        decision = fail_with_gil(runner, message, slot)
    new_generation(slot)
    while decision != UNDECIDED:
        if is_exhausted(slot):
            free_slot(table, slot)
            slot = take_slot(table, STEP)
        entry = NULL if slot == NULL else next_native(runner, message, decision, &arguments)
        if entry == NULL:
            message.decision = decision
            move(&runner.holds.lists, message, RUNNING, QUEUED)
            if runner.reactor.thread != 0:
                request_tick(&runner.reactor.state)
            if slot != NULL:
                put_back(table, slot)
            return called
        message.decision = UNDECIDED
        slot.object = <PyObject *>message
        called = True
        decision = call(runner, table, message, entry, slot, &arguments)
    return called


cdef Entry *next_native(Runner runner, Message message, int decision, Arguments *arguments) noexcept nogil:
    """The hook to be called now, and its arguments, if that is a native one; NULL when going on needs the GIL."""
    cdef Entry *entry = NULL
    if message.skipping:
        return NULL
    if decision == TO_CONTINUE:
        entry = &message.entry[1]
    elif decision == TO_RETRY and message.retries < runner.max_retries \
            and (<Chain>message.chain).route.chain is <Chain>message.chain:
        entry = (<Chain>message.chain).entries
    if entry == NULL or entry.native == NULL or not find_arguments(<PyObject *>message.args, entry.kind, arguments):
        return NULL
    if decision == TO_RETRY:
        message.retries += 1
    return entry


cdef int call(
        Runner runner, Table *table, Message message, Entry *entry, Slot *slot, Arguments *arguments) noexcept nogil:
    """Call native hooks, from `entry` on. The decision to go on with; UNDECIDED when the message is no longer ours, nor the
    slot."""
    cdef uint32_t called
    cdef int early
    cdef bint taken = False
    cdef NativeFrame before
    enter(table, NULL, <PyObject *>message, slot, this_thread(), &before)
    entry = call_hooks(runner, message, entry, slot, arguments, is_sampled(&runner.until_sample), &taken)
    leave(table, &before)
    if entry == NULL:  # all returned false
        return TO_CONTINUE
    if message.decision == UNDECIDED and not runner.closed:
        called = generation_of(get(&slot.word))
        if taken and swap(&slot.word, word_of(called, CALLED), word_of(called, HELD_BY)):
            hold_by(message, slot)
            set_byte(&message.reference, STRONG)
            move(&runner.holds.lists, message, RUNNING, HELD)
            return UNDECIDED
        early = early_decision(slot)
        if early != TO_FAIL and (taken or early < 0 or early == TO_CONTINUE):
            count_given(message.entry.counters, early)  # nothing, where the message was only passed on
            new_generation(slot)
            if not taken:
                return TO_CONTINUE
            move(&runner.holds.lists, message, RUNNING, HELD)  # rule 7: a hold that is over at once
            count_held_time(message, message.since)
            move(&runner.holds.lists, message, HELD, RUNNING)
            message.decision = early
            return early
    resume_with_gil(runner, table, message, slot, taken)
    return UNDECIDED


cdef void resume_with_gil(Runner runner, Table *table, Message message, Slot *slot, bint taken) noexcept with gil:
    """The hook contradicted itself, or failed the step, or that or its dispatcher was ended while it was called."""
    cdef Drops drops
    cdef bint has_slot = True
    cdef int decision
    no_drops(&drops)
    decision = decide(runner, message, slot, taken, &has_slot, &drops)
    if has_slot:
        new_generation(slot)
        put_back(table, slot)
    if decision != UNDECIDED:
        message.decision = decision
        resume(runner, message)
    flush(&drops, runner.reactor)
    Py_DECREF(message)


cdef int fail_with_gil(Runner runner, Message message, Slot *slot) noexcept with gil:
    """A plugin gave a message back that fails. What is decided about it then."""
    cdef Drops drops
    no_drops(&drops)
    fail(message, slot, &drops)
    flush(&drops, runner.reactor)
    return message.decision
