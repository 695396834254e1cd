"""A plugin's handles: `Context`, on one dispatcher, and `Hold`, on one hold; and giving control back by them."""

import asyncio
import json
import logging

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport strcmp

from ._holds cimport HoldTable, count_given
from ._message cimport (
    HELD, IDLE, RUNNING, TAKEN, TO_COMPLETE, TO_CONTINUE, TO_FAIL, TO_RETRY, UNDECIDED, CounterRow, Drops,
    Message, abandon, flush, new_row, no_drops)
from .loop._call cimport ends_program, take_error
from .loop._list cimport append, first, init_list, is_empty, is_linked, last, unlink
from .loop._watchdog_thread cimport WatchdogState, add_caller
from .loop._reactor cimport Caller, PyThread_get_thread_ident, Reactor
from .loop._seal cimport seal

from .errors import MqError, NotHeld

CALLBACK_RAISED = "plugin %s: a callback of a timer or watcher raised"

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(object)
    bint PyObject_GC_IsTracked(object)


# ------------------------------------------------------------------------------------------------------------ Giving back

cdef inline bint has_control(Context context, Message message) noexcept:
    """Whether this plugin may give the message back: it holds it, or its hook is being called, and it has not done so."""
    return (message.entry != NULL and message.entry.context == <PyObject *>context
            and message.decision == UNDECIDED and (message.state == HELD or message.state == RUNNING)
            and context.reactor.thread != 0)


cdef int give_back(Context context, Message message, int decision, object error) except -1:
    """Rules 6 to 9: claim the message, here and now; the dispatcher goes on with it in a tick. Any thread."""
    cdef Drops drops
    if not has_control(context, message):
        return refuse_give_back(context, message, "gave back")
    no_drops(&drops)
    count_given(message.entry.counters, decision)
    if decision == TO_FAIL:
        message.fail(error, &drops)
    message.decision = decision
    if message.state == HELD and message.task is None:
        context.holds.end_and_queue(message, &drops)
    # else it is early: it takes effect when the hook, or its coroutine, returns
    flush(&drops, context.reactor)
    return 0


cdef int refuse_give_back(Context context, Message message, str what) except -1:
    cdef str hook = "" if message.last_hook == NULL else <str>message.last_hook
    cdef CounterRow row = context.row_of(hook)
    row.counters.refused += 1
    if context.reactor.thread == 0:  # closed, or in the child of a fork
        context.reactor.refuse(f"plugin {context.name} {what} a message")
    if message.state == IDLE or message.entry == NULL:
        why = "its step is over" if hook else "it was in no step yet"
    elif message.entry.lists != &context.holds.lists:
        why = "it is in a step of another dispatcher"
    elif message.entry.context == <PyObject *>context:
        why = "it has been given back already"
    elif message.entry.plugin == NULL or message.state == TAKEN:
        why = "no plugin has been called for it yet"
    elif message.state == HELD:
        why = f"plugin {<str>message.entry.plugin} holds it now"
    elif message.state == RUNNING:
        why = f"the hook of plugin {<str>message.entry.plugin} is being called"
    else:
        why = f"plugin {<str>message.entry.plugin} had it last, and gave it back"
    where = f" of {hook}" if hook else ""
    raise NotHeld(f"plugin {context.name} {what} a message{where} that it does not hold: {why}")


cdef Py_ssize_t arguments_of(const char *method, Py_ssize_t least, Py_ssize_t count) noexcept:
    """How many arguments a method that gives back takes, of which the others take `least`; `count` for other methods."""
    if strcmp(method, b"continue_") == 0 or strcmp(method, b"complete") == 0 or strcmp(method, b"retry") == 0:
        return least
    return least + 1 if strcmp(method, b"fail") == 0 else count


cdef object as_error(object error):
    if isinstance(error, BaseException):
        return error
    if isinstance(error, str):
        return MqError(error)
    raise TypeError(f"fail() needs an exception or a str, not {error!r}")


# --------------------------------------------------------------------------------------------------------------- Failures

cdef void log_failure(Context context, object error, PyObject *hook) noexcept:
    """Rule 13: an error of the plugin, which has been stored: its name and hook go into the notes, and into the log. That may
    itself fail in any way; then it says less."""
    if (<int (*)(Context, object, PyObject *) noexcept>add_note)(context, error, hook) < 0:
        logging_failed(context.reactor)
    if (<int (*)(Context, object, PyObject *) noexcept>write_failure)(context, error, hook) < 0:
        logging_failed(context.reactor)


cdef void logging_failed(Reactor reactor) noexcept:
    """What was raised while something was told: only what ends the program matters."""
    cdef PyObject *error = take_error()
    if ends_program(<object>error):
        reactor.raise_through_loop(<object>error)
    Py_DECREF(<object>error)


cdef int add_note(Context context, object error, PyObject *hook) except -1:
    BaseException.add_note(error, f"plugin {context.name}, hook {<str>hook}")
    return 0


cdef int write_failure(Context context, object error, PyObject *hook) except -1:
    if isinstance(error, asyncio.CancelledError):  # what every task gets when the loop ends
        context.reactor.log(
            context.log, logging.ERROR, "plugin %s failed in %s: CancelledError", (context.name, <str>hook), None)
    elif not ends_program(error):  # that is told by whoever runs the loop
        context.reactor.log(context.log, logging.ERROR, "plugin %s failed in %s", (context.name, <str>hook), error)
    return 0


cdef int write_callback_failure(Context context, object error) except -1:
    """Rule 13: logged, and the loop goes on."""
    if isinstance(error, NotHeld):
        # It says all. An answer is late whenever a client goes away meanwhile, which is no error of the plugin.
        context.reactor.log(context.log, logging.WARNING, "%s", (error,), None)
    else:
        context.reactor.log(context.log, logging.ERROR, CALLBACK_RAISED, (context.name,), error)
    return 0


# --------------------------------------------------------------------------------------------------------------- Context

@cython.final
cdef class ReplacedContexts:

    def __cinit__(self):
        init_list(&self.in_use)
        init_list(&self.unused)

    cdef void add(self, Context context) noexcept:
        """Its plugin was replaced. In O(1), without memory."""
        Py_INCREF(context)
        append(&self.in_use if context.uses else &self.unused, &context.retirement)

    cdef void stop_using(self, Context context) noexcept:
        """One chain less names it. In O(1), without memory: any thread, inside any allocation."""
        context.uses -= 1
        if context.uses == 0 and is_linked(&context.retirement):
            unlink(&context.retirement)
            append(&self.unused, &context.retirement)
            context.reactor.wake()  # the sweep cleans it up

    cdef bint has_unused(self) noexcept:
        return not is_empty(&self.unused)

    cdef PyObject *take_unused(self) noexcept:
        """The first that no step can reach, with the list's reference; there is one."""
        return take_replaced(first(&self.unused))

    cdef PyObject *take_last(self) noexcept:
        """The last of all, with the list's reference, or NULL."""
        return take_replaced(last(&self.unused) if is_empty(&self.in_use) else last(&self.in_use))


cdef PyObject *take_replaced(Link *link) noexcept:
    if link == NULL:
        return NULL
    unlink(link)
    return <PyObject *>(<char *>link - <size_t>&(<Context><PyObject *>NULL).retirement)


cdef ReplacedContexts new_replaced_contexts():
    return ReplacedContexts.__new__(ReplacedContexts)


cdef Context new_context(HoldTable holds, dict rows, ReplacedContexts replaced, object plugin, double hold_timeout):
    cdef Context context = Context.__new__(Context)
    context.reactor = holds.reactor
    context.holds = holds
    context.rows = rows
    context.replaced = replaced
    context.plugin = plugin
    context.name = plugin.name
    context.data = {}
    context.log = plugin.log
    context.forgiving = plugin.config.get("on_error", "fail") == "continue"
    context.hold_timeout = plugin.config.get("hold_timeout", hold_timeout)
    context.caller = &context.row_of(None).counters.caller  # the dispatcher keeps it
    return context


cdef int introduce(Reactor reactor, CounterRow row) except -1:
    """To the watchdog."""
    cdef Caller *caller = &row.counters.caller
    if reactor.state.watchdog == NULL:
        return 0
    row.texts = (as_text(row.plugin), as_text(row.hook))
    caller.plugin = <bytes>row.texts[0]
    caller.hook = NULL if row.hook is None else <const char *><bytes>row.texts[1]
    add_caller(<WatchdogState *>reactor.state.watchdog, caller)
    return 0


cdef object as_text(name):
    """For a line of the log, or a text in JSON: nothing in it ends either of them."""
    return json.dumps(name)[1:-1].encode()


@cython.final
@cython.no_gc_clear  # entries, holds and the list of the replaced need what it refers to
cdef class Context(Lifetime):
    """A plugin's handle on one worker; made by the dispatcher, one for each plugin, and given to every hook of it.

    `plugin`: its Plugin. `data`: a dict of the plugin's own, for this worker. `log`: its logging.Logger,
    `mqcore.plugins.NAME`.

    Giving back is what any thread may do. It takes effect in a tick of the dispatcher's loop, never before the call
    returns. It raises NotHeld, and changes nothing, unless this plugin has control of the message: its hook returned true,
    or is being called. Between two holds of one message by one plugin, only a `Hold` can tell which of them is meant:
    where a late give-back is possible, such as after a timeout, use `context.hold(message)`.

    A context may be kept as long as you like. After `close()` of its dispatcher giving back, timers and watchers raise
    DispatcherClosed.
    """

    @property
    def loop(self):
        """The loop: a uvloop.Loop or a pyuv.Loop."""
        return self.reactor.loop

    @property
    def config(self):
        """The plugin's configuration: a read-only mapping."""
        return self.plugin.config

    def continue_(self, Message message not None):
        """Give the message back: the next plugin is called. (MailerQ's MQ_continue.)"""
        give_back(self, message, TO_CONTINUE, None)

    def complete(self, Message message not None):
        """Give the message back: the other plugins are skipped, the outcome is COMPLETE. (MailerQ's MQ_complete.)"""
        give_back(self, message, TO_COMPLETE, None)

    def retry(self, Message message not None):
        """Give the message back: the step starts again with the first plugin. (MailerQ's MQ_retry.) More than the
        dispatcher's `max_retries` of them in one step fail it with RetryLimit."""
        give_back(self, message, TO_RETRY, None)

    def fail(self, Message message not None, error):
        """Give the message back: the step fails, with `error` (an exception, or a str for an MqError) in `message.error`.
        Raises TypeError for anything else."""
        give_back(self, message, TO_FAIL, as_error(error))

    def hold(self, Message message not None):
        """The token of the current hold of the message: a `Hold`.

        To be called in the hook, which may return it in place of HOLD, or while the plugin holds the message; the same
        object each time, as long as it is alive. Raises NotHeld when this plugin has no control of the message,
        DispatcherClosed after close(), MqError on another thread than the dispatcher's.
        """
        cdef Hold hold
        self.reactor.check("hold()")
        if not has_control(self, message):
            refuse_give_back(self, message, "asked for a hold of")
        if message.token != NULL:
            return <Hold>message.token
        hold = Hold.__new__(Hold)  # memory is made: what was true before is looked at again
        if not has_control(self, message):
            refuse_give_back(self, message, "asked for a hold of")
        if message.token != NULL:
            return <Hold>message.token
        hold.reactor = self.reactor
        hold.context = self
        hold.caller = self.caller
        hold.message_held = message
        hold.hook = message.entry.hook
        message.token = <PyObject *>hold
        if not PyObject_GC_IsTracked(message):
            PyObject_GC_UnTrack(hold)  # the message shows it, once something can lead back to it
        return hold

    cdef CounterRow row_of(self, str hook):
        """The counters of this plugin and hook; with "", of what it did with messages that were in no step yet; with None, of
        the callbacks of its timers and watchers."""
        cdef CounterRow row = self.rows.get((self.name, hook))
        if row is None:
            row = new_row(self.name, hook)
            if self.rows.setdefault((self.name, hook), row) is row:
                introduce(self.reactor, row)
            row = self.rows[self.name, hook]
        return row

    cdef int check_open(self, str what) except -1:
        if self.reactor.thread != PyThread_get_thread_ident():  # here, as the text is only made where it is needed
            self.reactor.refuse(f"plugin {self.name}: {what}")
        return 0

    cdef Py_ssize_t arguments_of(self, const char *method, Py_ssize_t count) noexcept:
        return arguments_of(method, 1, count)

    cdef void callback_raised(self, object error) noexcept:
        if ends_program(error):
            self.reactor.raise_through_loop(error)
        elif (<int (*)(Context, object) noexcept>write_callback_failure)(self, error) < 0:
            logging_failed(self.reactor)

    def __repr__(self):
        return f"<mqcore.Context of plugin {self.name}>"


# ------------------------------------------------------------------------------------------------------------------ Hold

@cython.final
@cython.no_gc_clear
cdef class Hold(HoldBase):
    """The exact token of one hold: from `context.hold(message)`, returned by a hook in place of HOLD.

    With it a late give-back can never hit another hold of the same message by the same plugin: once the hold is over,
    however it ended, all methods raise NotHeld, or DispatcherClosed. Timers and watchers started on it end with it. A
    running one keeps it alive. When the hook returned it and its last reference is gone, nobody can give the message back
    any more, and the step fails with Abandoned.

    Giving back is what any thread may do, the rest belongs to the dispatcher's.

    `message`: the message, or None when the hold is over.
    """

    def __del__(self):
        # Any thread, inside any allocation: only queue. Whoever brings it back to life has a hold that is over.
        cdef Message message = self.message_held
        self.over = True
        if message is None or message.token != <PyObject *>self:
            return
        message.token = NULL
        if message.state == HELD and message.by_token and message.decision == UNDECIDED:
            abandon(message)

    @property
    def message(self):
        """The message, or None when the hold is over."""
        return None if self.over else self.message_held

    def continue_(self):
        """Give the message back: the next plugin is called."""
        self.give_back(TO_CONTINUE, None)

    def complete(self):
        """Give the message back: the other plugins are skipped, the outcome is COMPLETE."""
        self.give_back(TO_COMPLETE, None)

    def retry(self):
        """Give the message back: the step starts again with the first plugin."""
        self.give_back(TO_RETRY, None)

    def fail(self, error):
        """Give the message back: the step fails with `error`, an exception or a str."""
        self.give_back(TO_FAIL, as_error(error))

    cdef int give_back(self, int decision, object error) except -1:
        if self.over or self.message_held is None:
            self.refuse("gave back")
        return give_back(self.context, self.message_held, decision, error)

    cdef int refuse(self, str what) except -1:
        cdef str hook = <str>self.hook
        cdef CounterRow row = self.context.row_of(hook)
        row.counters.refused += 1
        if self.reactor.thread == 0:
            self.reactor.refuse(f"plugin {self.context.name} {what} a message")
        raise NotHeld(f"plugin {self.context.name} {what} a message of {hook} by a hold that is over")

    cdef int check_open(self, str what) except -1:
        self.context.check_open(what)
        if self.over or self.message_held is None:
            raise NotHeld(f"plugin {self.context.name}: {what}: the hold, in {<str>self.hook}, is over")
        return 0

    cdef Py_ssize_t arguments_of(self, const char *method, Py_ssize_t count) noexcept:
        return arguments_of(method, 0, count)

    cdef void callback_raised(self, object error) noexcept:
        """Rule 13: the step fails, or goes on when the plugin's config says so."""
        cdef Message message = self.message_held
        cdef Context context = self.context
        cdef bint ending = ends_program(error)
        cdef Drops drops
        no_drops(&drops)
        if not self.over and message is not None and has_control(context, message):
            message.decision = TO_CONTINUE if context.forgiving and not ending else TO_FAIL
            count_given(message.entry.counters, message.decision)
            if message.decision == TO_FAIL:
                message.fail(error, &drops)
            if message.state == HELD and message.task is None:
                context.holds.end_and_queue(message, &drops)
        log_failure(context, error, self.hook)
        flush(&drops, self.reactor)
        if ending:
            self.reactor.raise_through_loop(error)

    def __repr__(self):
        state = "over" if self.over or self.message_held is None else "live"
        return f"<mqcore.Hold by plugin {self.context.name} in {<str>self.hook}, {state}>"


seal(ReplacedContexts)
seal(Context)
seal(Hold)
