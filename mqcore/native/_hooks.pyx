# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""Native plugins: their hooks in a chain, and what they hold.

A step has one slot of the handle table, which all native hooks of it use one after the other; each call is a generation of
its own, so a hook that returns false costs a number and two comparisons. Only a hook that takes control keeps the slot.

    CALLED    a hook is being called   -> GIVEN (early give-back), HELD_BY, or the next generation
    HELD_BY   the plugin has control   -> GIVEN by a give-back, FREE when the hold ended otherwise
    GIVEN     the dispatcher will go on with the message -> FREE; OVER when the step ended before it came to that, CLAIMED when
              it went on before its turn

A give-back is a compare-and-swap of that state, from any thread and without the GIL, and then the slot goes into a queue that
the dispatcher works off in ticks. That a hook which returned false can lose the give-back of another thread, made in the same
instant, is as good as if it had come too late.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from .._chain cimport Chain
from .._dispatch cimport Runner, add_sample, begin, begun, hook_raised, interpret, is_sampled, proceed
from .._holds cimport Batch, count_given
from .._message cimport (
    IDLE, RUNNING, TAKEN, TO_CONTINUE, TO_FAIL, UNDECIDED, Drops, Entry, HoldLists, Message, NativeSide, flush, move, no_drops)
from ..loop._atomic cimport get, load, set, store, swap
from ..loop._call cimport take_error
from ._arguments cimport OF_ADDRESS, OF_MESSAGE, Arguments, take_arguments
from ._diagnostics cimport is_of_another, record_misuse_of, wake
from ._failures cimport early_decision, fail, is_failing, note_reason
from ._queue cimport put
from ._slots cimport (
    CALLED, CLAIMED, CONNECTION, FREE, GENERATION, GIVEN, HELD_BY, OVER, STEP, Slot, Table, free_slot, generation_in,
    generation_of, get_kind, get_pointer, handle_of, handle_with, part_in, set_number, set_object, set_pointer, set_slot,
    slot_of, state_of, table_of, take_slot, word_of)

cdef extern from *:
    """
    #include <stdbool.h>
    #define mqcore_unlikely(condition) __builtin_expect((condition) != 0, 0)

    /* The part of a handle that says what it stands for is in its low bits. No pointer to a function for each kind of hook:
       all hooks of a chain take the same branch. */
    static inline bool mqcore_call_hook(void *hook, int kind, void *context, char *handle, const mqcore_arguments *arguments)
    {
        if (__builtin_expect(kind == 1, 1))
            return ((bool (*)(void *, void *, void *))hook)(context, handle, handle + 1);
        if (kind == 0)
            return ((bool (*)(void *, void *))hook)(context, handle);
        if (kind == 2)
            return ((bool (*)(void *, void *, void *))hook)(context, handle, handle + 2);
        if (kind == 3)
            return ((bool (*)(void *, void *, const char *, size_t))hook)(
                context, handle, arguments->first, arguments->first_size);
        return ((bool (*)(void *, void *, const char *, size_t, const char *, size_t))hook)(
            context, handle, arguments->first, arguments->first_size, arguments->second, arguments->second_size);
    }
    """
    bint unlikely "mqcore_unlikely"(uint64_t condition) noexcept nogil
    bint call_hook "mqcore_call_hook"(void *hook, int kind, void *context, char *handle, const Arguments *) noexcept nogil
    # Of loop/_atomic.pxd.
    void set_entry "mqcore_set"(Entry **, Entry *) noexcept nogil
    void store_entry "mqcore_store"(Entry **, Entry *) noexcept nogil

cdef extern from "Python.h":
    ctypedef struct Items "PyTupleObject":
        PyObject *items "ob_item"[1]
    int PyList_SetItem(object, Py_ssize_t, PyObject *) noexcept
    Py_ssize_t PyTuple_GET_SIZE(PyObject *) nogil
    PyObject *PyExc_RuntimeError
    void PyErr_SetString(object, const char *) noexcept

cdef enum:
    MOST_WITH_GIL = 16  # messages: once so many were passed on, one after the other, the GIL is released for more
    LAST_CALLS = 1 << 22  # that a slot has generations for, when is_exhausted() begins to say so

cdef struct NativeBatch:
    # Messages of one run_many(), in a row.
    Batch batch             # first
    Table *table
    Slot *slot
    Arguments arguments     # the hooks here have none
    uint64_t most           # messages that its generations are enough for, before they have to be looked at again
    Entry *stopped          # where a hook did not pass a message on, or something was ended in it; NULL: nowhere
    bint taken              # and whether the hook returned true


# ----------------------------------------------------------------------------------------------------------------- Calls

cdef int call_native(NativeSide side, Message message, Entry *entry, bint timed, Drops *drops) noexcept:
    """NativeSide.call."""
    cdef Runner runner = <Runner>side.runner
    cdef Table *table = <Table *>side.table
    cdef Arguments arguments
    cdef NativeFrame before
    cdef int decision = TO_CONTINUE
    cdef bint has_slot = True
    cdef bint taken = False
    cdef Slot *slot = table.spare
    if entry.kind > OF_ADDRESS or slot == NULL or is_exhausted(slot):
        message.entry = entry
        slot = make_ready(runner, table, message, &arguments, &decision, drops)
        if slot == NULL:
            return decision
    table.spare = NULL
    slot.object = <PyObject *>message
    enter(table, NULL, <PyObject *>message, slot, runner.reactor.thread, &before)
    while decision == TO_CONTINUE and entry != NULL:
        entry = call_hooks(runner, message, entry, slot, &arguments, timed, &taken)
        if entry != NULL:
            decision = decide(runner, message, slot, taken, &has_slot, drops)
            if not has_slot:
                break
            new_generation(slot)
            entry = following(entry)
    leave(table, &before)
    if has_slot:
        put_back(table, slot)
    return decision


cdef Py_ssize_t run_many_native(
        NativeSide side, Chain chain, tuple messages, Py_ssize_t index, list outcomes, object done, object variables) noexcept:
    """NativeSide.run_many: what begin() does, in one go, and without the GIL as long as hooks return false."""
    cdef Runner runner = <Runner>side.runner
    cdef Table *table = <Table *>side.table
    cdef NativeBatch native
    cdef NativeFrame before
    cdef PyObject **items = (<Items *>messages).items
    cdef Py_ssize_t count = PyTuple_GET_SIZE(<PyObject *>messages)
    cdef Py_ssize_t passed = 0
    memset(&native, 0, sizeof(NativeBatch))
    if chain.entries.kind <= OF_ADDRESS:  # else they need arguments: that is for the hook to tell
        native.slot = slot_for_step(table)
    if native.slot == NULL:
        begin_one(runner, chain, <Message>items[index], outcomes, index, done, variables)
        return index + 1
    native.table = table
    native.most = max(1, LAST_CALLS // <uint64_t>PyTuple_GET_SIZE(<PyObject *>chain.contexts))
    enter(table, NULL, NULL, native.slot, runner.reactor.thread, &before)
    while index < count and chain.route.chain is chain and not is_exhausted(native.slot):
        native.stopped = NULL
        passed = 0 if runner.closed else run_batch(
            runner, &native, chain.entries, &items[index], count - index, passed < MOST_WITH_GIL)
        index += passed
        if native.stopped != NULL:
            if not proceed_one(runner, chain, &native, outcomes, index, done, variables):
                native.slot = NULL if runner.closed else slot_for_step(table)  # that one is the hold's now
                set_slot(&table.step, native.slot)
            index += 1
            if native.slot == NULL:
                break
        elif passed == 0:
            begin_one(runner, chain, <Message>items[index], outcomes, index, done, variables)
            index += 1
    leave(table, &before)
    if native.slot != NULL:
        put_back(table, native.slot)
    return index


cdef Py_ssize_t run_batch(
        Runner runner, NativeBatch *native, Entry *entries, PyObject **messages, Py_ssize_t count, bint with_gil) noexcept:
    """Steps of messages, up to the first that is not passed on: how many are over."""
    native.batch.entries = entries
    native.batch.messages = messages
    native.batch.count = min(count, <Py_ssize_t>MOST_WITH_GIL) if with_gil else count
    native.batch.passed = 0
    runner.holds.begin_batch(&native.batch)
    if with_gil:
        pass_through(runner, native)
    else:
        with nogil:
            pass_through(runner, native)
    runner.holds.end_batch(&native.batch, native.stopped)
    return native.batch.passed


cdef void begin_one(
        Runner runner, Chain chain, Message message, list outcomes, Py_ssize_t index, object done,
        object variables) noexcept:
    """The step of one message in the ordinary way."""
    move(&runner.holds.lists, message, TAKEN, RUNNING)
    put_outcome(outcomes, index, begin(runner, chain, message, NO_ARGUMENTS, done, variables))


cdef bint proceed_one(
        Runner runner, Chain chain, NativeBatch *native, list outcomes, Py_ssize_t index, object done,
        object variables) noexcept:
    """A hook did not pass the message on that the batch has stopped at, or something was ended in it: go on as usual. Whether
    the slot is free."""
    cdef Message message = <Message>native.batch.messages[native.batch.passed]
    cdef Slot *slot = native.slot
    cdef Drops drops
    cdef bint has_slot = True
    cdef int decision
    no_drops(&drops)
    move(&runner.holds.lists, message, TAKEN, RUNNING)
    decision = decide(runner, message, slot, native.taken, &has_slot, &drops)
    if has_slot:
        new_generation(slot)
        drop_kept(slot)
    decision = proceed(runner, message, chain, decision, &drops)
    put_outcome(outcomes, index, begun(runner, chain, message, decision, NO_ARGUMENTS, done, variables, &drops))
    flush(&drops, runner.reactor)
    return has_slot


cdef void put_outcome(list outcomes, Py_ssize_t index, PyObject *outcome) noexcept:
    Py_INCREF(<object>outcome)
    PyList_SetItem(outcomes, index, outcome)


cdef void pass_through(Runner runner, NativeBatch *native) noexcept nogil:
    """Steps of messages that all hooks pass on. It stops before one that needs more care; where a hook does not pass a message
    on, or something else was ended in it, the step of that one has begun, too, and `stopped` is where it is."""
    cdef Batch *batch = &native.batch
    cdef uint64_t until
    while batch.passed < batch.count and not is_exhausted(native.slot):
        if runner.until_sample == 0:
            if not pass_timed(runner, native, <Message>batch.messages[batch.passed]):
                return
            continue
        until = min(batch.count, batch.passed + min(<uint64_t>runner.until_sample, native.most))
        runner.until_sample -= until - batch.passed
        # The kind is for the compiler, which makes a loop for it that does not look.
        if batch.entries.kind == OF_MESSAGE:
            pass_untimed(&runner.holds.lists, native, until, OF_MESSAGE)
        else:
            pass_untimed(&runner.holds.lists, native, until, batch.entries.kind)
        if batch.passed < until:
            runner.until_sample += until - batch.passed - (native.stopped != NULL)
            return


cdef bint pass_timed(Runner runner, NativeBatch *native, Message message) noexcept nogil:
    """pass_through() for one message, with a look at the clock. Whether it is through."""
    if needs_care(message) or not is_sampled(&runner.until_sample):
        return False
    begin_pass(native, message)
    native.stopped = call_timed(runner, message, native.batch.entries, native.slot, &native.arguments, False, &native.taken)
    if native.stopped != NULL:
        return False
    end_pass(&runner.holds.lists, native, message)
    if native.slot.kept != NULL:
        drop_with_gil(native.slot)
    return True


cdef inline void pass_untimed(HoldLists *lists, NativeBatch *native, uint64_t until, int kind) noexcept nogil:
    """The same for some, without, up to number `until`. What is needed once for each message is read from `native` anew: in
    registers there is room for what each hook needs, and no more."""
    cdef PyObject *message
    cdef Entry *stopped
    cdef uint64_t called = word_of(generation_of(get(&native.slot.word)), CALLED)
    while native.batch.passed < until:
        message = native.batch.messages[native.batch.passed]
        if needs_care(<Message>message):
            break
        begin_pass(native, <Message>message)
        stopped = call_each(
            lists, <Message>message, native.batch.entries, native.slot, kind, NULL, False, &called, &native.taken)
        if stopped != NULL:
            native.stopped = stopped
            return
        end_pass(lists, native, <Message>message)
        if native.slot.kept != NULL:
            leave_free(native.slot, called)  # other threads may run
            drop_with_gil(native.slot)
    leave_free(native.slot, called)


cdef inline bint needs_care(Message message) noexcept nogil:
    return message.decision != UNDECIDED or message.failure is not None


cdef inline void begin_pass(NativeBatch *native, Message message) noexcept nogil:
    set_object(&native.table.message, <PyObject *>message)
    native.slot.object = <PyObject *>message
    message.retries = 0


cdef inline void end_pass(HoldLists *lists, NativeBatch *native, Message message) noexcept nogil:
    # First the number: who looks now finds the next message, which is at no plugin yet.
    store(&native.batch.passed, native.batch.passed + 1)
    store_entry(&message.entry, NULL)
    move(lists, message, TAKEN, IDLE)


cdef Slot *slot_for_step(Table *table) noexcept nogil:
    """A slot for a step: the spare one, if its generations are not used up. NULL: there is none left, or no memory."""
    cdef Slot *slot = table.spare
    table.spare = NULL
    if slot != NULL and not is_exhausted(slot):
        return slot
    if slot != NULL:
        free_slot(table, slot)
    return take_slot(table, STEP)


cdef inline Entry *following(Entry *entry) noexcept nogil:
    """The next native hook, if it is next in the chain."""
    return NULL if entry[1].native == NULL else &entry[1]


cdef Entry *call_hooks(
        Runner runner, Message message, Entry *entry, Slot *slot, Arguments *arguments, bint timed,
        bint *taken) noexcept nogil:
    """Call native hooks as long as they return false and nothing else happens. The one where it did, or may have; NULL when
    there was none, and then the slot is free."""
    cdef uint64_t called = word_of(generation_of(get(&slot.word)), CALLED)
    if timed:
        return call_timed(runner, message, entry, slot, arguments, True, taken)
    entry = call_each(&runner.holds.lists, message, entry, slot, entry.kind, arguments, True, &called, taken)
    if entry == NULL:
        leave_free(slot, called)
    return entry


cdef inline void leave_free(Slot *slot, uint64_t called) noexcept nogil:
    """No hook is being called with it, and `called` was to be its next word."""
    set(&slot.word, word_of(generation_of(called), FREE))


cdef inline Entry *call_each(
        HoldLists *lists, Message message, Entry *entry, Slot *slot, int kind, const Arguments *arguments, bint counted,
        uint64_t *called, bint *taken) noexcept nogil:
    """call_hooks() of one chain, so of one kind. `counted`: each call is counted at once; else a Batch says how many are not.
    `called`: the slot's word for the next call. Where there is none, it is for the caller to leave the slot free."""
    cdef uint64_t word = called[0]
    cdef uint64_t place = slot.place - word_of(0, CALLED)  # what makes a handle of that
    cdef bint held
    while True:
        set_entry(&message.entry, entry)
        set(&slot.word, word)
        if counted:
            entry.counters.caller.calls += 1
        held = call_hook(entry.native, kind, entry.handle, <char *>(place + word), arguments)
        if unlikely(held) or unlikely((get(&slot.word) ^ word) | lists.fast_path_off):
            taken[0] = held
            return entry
        word += GENERATION
        entry += 1
        if entry.native == NULL:
            break
    called[0] = word
    return NULL


cdef Entry *call_timed(
        Runner runner, Message message, Entry *entry, Slot *slot, const Arguments *arguments, bint counted,
        bint *taken) noexcept nogil:
    """The same, with a look at the clock between them: each look ends one call and begins the next."""
    cdef uint64_t called = word_of(generation_of(get(&slot.word)), CALLED)
    cdef uint64_t before = runner.reactor.state.uv.hrtime()
    cdef uint64_t after
    while entry != NULL:
        set_entry(&message.entry, entry)
        set(&slot.word, called)
        if counted:
            entry.counters.caller.calls += 1
        taken[0] = call_hook(entry.native, entry.kind, entry.handle, <char *>handle_with(slot, called), arguments)
        after = runner.reactor.state.uv.hrtime()
        add_sample(entry.counters, after - before)
        before = after
        if taken[0] or get(&slot.word) != called or runner.holds.lists.fast_path_off:
            return entry
        called += GENERATION
        leave_free(slot, called)
        entry = following(entry)
    return NULL


cdef Slot *make_ready(
        Runner runner, Table *table, Message message, Arguments *arguments, int *decision, Drops *drops) noexcept:
    """A slot for the hooks of a step, and their arguments as C has them. NULL: that failed, as if the first hook had."""
    cdef Slot *slot = NULL
    if (<int (*)(Message, Arguments *) noexcept>take_arguments)(message, arguments) == 0:
        slot = slot_for_step(table)
        if slot == NULL:
            PyErr_SetString(<object>PyExc_RuntimeError, b"there is no handle left for native hooks")
    if slot == NULL:
        message.entry.counters.caller.calls += 1
        decision[0] = hook_raised(runner, message, take_error(), drops)
    return slot


cdef int decide(Runner runner, Message message, Slot *slot, bint taken, bint *has_slot, Drops *drops) noexcept:
    """A hook returned true, or gave control back, or its step or dispatcher has ended: what follows. `has_slot` becomes
    False when the slot went to a hold."""
    cdef uint32_t called = generation_of(get(&slot.word))
    cdef int early
    cdef int decision
    if taken and swap(&slot.word, word_of(called, CALLED), word_of(called, HELD_BY)):
        has_slot[0] = False
        hold_by(message, slot)
        decision = interpret(runner, message, True, drops)
        if message.state == RUNNING and message.by_state.native != NULL:  # never held: the step or the dispatcher had ended
            end_native_hold(message.by_state.native)
            message.by_state.native = NULL
        return decision
    early = early_decision(slot)
    if early > 0 and message.decision == UNDECIDED:
        message.decision = early
        count_given(message.entry.counters, early)
        if early == TO_FAIL:
            fail(message, slot, drops)
    return interpret(runner, message, True if taken else False, drops)


cdef void hold_by(Message message, Slot *slot) noexcept nogil:
    """The plugin at message.entry has control, by the slot's handle."""
    set_pointer(&slot.owner, message.entry.handle)
    set_object(&slot.hook, message.entry.hook)
    set_number(&slot.held, generation_of(get(&slot.word)))
    message.by_state.native = slot


cdef void put_back(Table *table, Slot *slot) noexcept nogil:
    """The step goes on without native hooks for now: its slot is for the next one."""
    if slot.kept != NULL:
        drop_with_gil(slot)
    slot.object = NULL
    if table.spare == NULL:
        table.spare = slot
    else:
        free_slot(table, slot)


cdef int keep(Slot *slot, object value) except -1:
    """What a string belongs to that was handed out: keep it as long as the handle."""
    cdef list kept
    if slot.kept == NULL:
        kept = []
        slot.kept = <PyObject *>kept
        Py_INCREF(kept)
    (<list>slot.kept).append(value)
    return 0


cdef void drop_with_gil(Slot *slot) noexcept with gil:
    drop_kept(slot)


cdef void drop_kept(Slot *slot) noexcept:
    if slot.kept != NULL:
        kept = <list>slot.kept
        slot.kept = NULL
        Py_DECREF(kept)


# ----------------------------------------------------------------------------------------------------------------- Holds

cdef void give_back_by(void *handle, int decision, const char *reason, void *caller) noexcept nogil:
    """A plugin gives control back; `reason`: why the step fails, or NULL. Any thread, without the GIL."""
    cdef Table *table = table_of(handle)
    cdef Slot *slot = slot_of(handle)
    cdef uint64_t word
    if slot == NULL or get_kind(&slot.kind) != STEP or part_in(handle) != CONNECTION:
        record_misuse_of(handle, b"gave back what is no connection", caller)
        return
    while True:
        word = load(&slot.word)
        if generation_of(word) != generation_in(handle) or state_of(word) != HELD_BY and state_of(word) != CALLED:
            record_misuse_of(
                handle, b"gave back a message that it does not hold: it gave it back already, or the step has ended", caller)
            return
        if state_of(word) == HELD_BY and is_of_another(table, get_pointer(&slot.owner)):
            record_misuse_of(handle, b"gave back a message that another plugin holds", caller)
            return
        if is_failing(slot):
            decision = TO_FAIL
        elif reason != NULL:
            note_reason(slot, generation_in(handle), reason)
            reason = NULL
        if swap(&slot.word, word, word_of(generation_of(word), GIVEN + decision)):
            break
    if state_of(word) == HELD_BY and put(&table.given, slot):
        wake(table)


cdef void end_native_hold(void *native) noexcept:
    """NativeSide.hold_ended: from now on its handle is stale."""
    cdef Slot *slot = <Slot *>native
    cdef uint64_t word
    drop_kept(slot)
    while True:
        word = load(&slot.word)
        # Unless it is held, it is in the list of what was given back, or about to be, and is let go there.
        if swap(&slot.word, word, word_of(generation_of(word) + GENERATION, FREE if state_of(word) == HELD_BY else OVER)):
            break
    if state_of(word) == HELD_BY:
        free_slot(table_of(handle_of(slot)), slot)


cdef int claim_given(Message message, Drops *drops) noexcept:
    """NativeSide.claim: the slot is let go when its turn comes."""
    cdef Slot *slot = <Slot *>message.by_state.native
    cdef uint64_t word = load(&slot.word)
    cdef int decision = state_of(word) - GIVEN
    if decision <= 0:
        return UNDECIDED
    message.by_state.native = NULL
    if decision == TO_FAIL:
        fail(message, slot, drops)
    drop_kept(slot)
    store(&slot.word, word_of(generation_of(word) + GENERATION, CLAIMED))
    return decision


cdef tuple NO_ARGUMENTS = ()
