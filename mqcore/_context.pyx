"""The plugin's side of control: `Context`, its handle on one worker, and `Hold`, the token of one hold."""

import asyncio
import logging

cimport cython
from cpython.object cimport PyObject

from .loop._reactor cimport ends_program, PyThread_get_thread_ident
from ._message cimport (
    HELD, TO_COMPLETE, TO_CONTINUE, TO_FAIL, TO_RETRY, UNDECIDED, Control, Message, Token, give_back,
    has_control, refuse_give_back)
from .loop._seal cimport seal

from .errors import MqError, NotHeld

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(object)
    bint PyObject_GC_IsTracked(object)


cdef object as_error(object error):
    if isinstance(error, BaseException):
        return error
    if isinstance(error, str):
        return MqError(error)
    raise TypeError(f"fail() needs an exception or a str, not {error!r}")


# --------------------------------------------------------------------------------------------------------------- Context

cdef Context new_context(object owner, object plugin, double hold_timeout):
    cdef Context context = Context.__new__(Context)
    context.owner = owner
    context.reactor = context.owner.reactor
    context.plugin = plugin
    context.name = plugin.name
    context.tallies = {}
    context.data = {}
    context.log = plugin.log
    context.forgiving = plugin.config.get("on_error", "fail") == "continue"
    context.hold_timeout = plugin.config.get("hold_timeout", hold_timeout)
    return context


@cython.final
cdef class Context(Holder):
    """A plugin's handle on one worker; made by the dispatcher, one for each plugin, and given to every hook of it.

    `plugin`: its Plugin. `data`: a dict of the plugin's own, for this worker. `log`: its logging.Logger,
    `mqcore.plugins.NAME`.

    Giving back is what any thread may do. It takes effect in a turn of the dispatcher's loop, never before the call
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

        To be called in the hook, which may return it in place of True, or while the plugin holds the message; the same
        object each time, as long as it is alive. Raises NotHeld when this plugin has no control of the message,
        DispatcherClosed after close(), MqError on another thread than the dispatcher's.
        """
        self.reactor.check("hold()")
        if not has_control(self, message):
            refuse_give_back(self, message, "asked for a hold of")
        if message.token != NULL:
            return <Hold>message.token
        cdef Hold hold = Hold.__new__(Hold)
        hold.reactor = self.reactor
        hold.owner = self.owner
        hold.context = self
        hold.message = message
        hold.hook = message.entry.hook
        message.token = <PyObject *>hold
        if not PyObject_GC_IsTracked(message):
            PyObject_GC_UnTrack(hold)  # the message shows it, once something can lead back to it
        return hold

    cdef int check_open(self, str what) except -1:
        if self.reactor.thread != PyThread_get_thread_ident():  # here, as the text is only made where it is needed
            self.reactor.refuse(f"plugin {self.name}: {what}")
        return 0

    cdef void callback_raised(self, object error) noexcept:
        """Rule 13: logged, and the loop goes on."""
        if ends_program(error):
            self.reactor.raise_through_loop(error)
        elif isinstance(error, NotHeld):
            # It says all. An answer is late whenever a client goes away meanwhile, which is no error of the plugin.
            self.reactor.log(self.log, logging.WARNING, "%s", (error,), None)
        else:
            self.reactor.log(
                self.log, logging.ERROR, "plugin %s: a callback of a timer or watcher raised", (self.name,), error)

    cdef object failure(self, object error, str hook):
        """Rule 13: an error of the plugin, with its name and hook in the notes; logged."""
        error.add_note(f"plugin {self.name}, hook {hook}")
        if isinstance(error, asyncio.CancelledError):  # what every task gets when the loop ends
            self.reactor.log(self.log, logging.ERROR, "plugin %s failed in %s: CancelledError", (self.name, hook), None)
        elif not ends_program(error):  # that is told by whoever runs the loop
            self.reactor.log(self.log, logging.ERROR, "plugin %s failed in %s", (self.name, hook), error)
        return error

    def __repr__(self):
        return f"<mqcore.Context of plugin {self.name}>"


# ------------------------------------------------------------------------------------------------------------------ Hold

@cython.final
cdef class Hold(Token):
    """The exact token of one hold: from `context.hold(message)`, returned by a hook in place of True.

    With it a late give-back can never hit another hold of the same message by the same plugin: once the hold is over,
    however it ended, all methods raise NotHeld, or DispatcherClosed. Timers and watchers started on it end with it. A
    running one keeps it alive. When the hook returned it and its last reference is gone, nobody can give the message back
    any more, and the step fails with Abandoned.

    Giving back is what any thread may do, the rest belongs to the dispatcher's.

    `message`: the message, or None when the hold is over.
    """

    def __del__(self):
        # Any thread, inside any allocation: only queue.
        cdef Message message = self.message
        if message is None or message.token != <PyObject *>self:
            return
        message.token = NULL
        if message.state == HELD and message.by_token and message.verdict == UNDECIDED:
            (<Control>self.owner).release(message, TO_FAIL)

    def continue_(self):
        """Give the message back: the next plugin is called."""
        self.give(TO_CONTINUE, None)

    def complete(self):
        """Give the message back: the other plugins are skipped, the outcome is COMPLETE."""
        self.give(TO_COMPLETE, None)

    def retry(self):
        """Give the message back: the step starts again with the first plugin."""
        self.give(TO_RETRY, None)

    def fail(self, error):
        """Give the message back: the step fails with `error`, an exception or a str."""
        self.give(TO_FAIL, as_error(error))

    cdef int give(self, int verdict, object error) except -1:
        if self.message is None:
            self.refuse("gave back")
        return give_back(self.context, self.message, verdict, error)

    cdef int refuse(self, str what) except -1:
        cdef str hook = <str>self.hook
        self.context.count_refused(hook, what)
        raise NotHeld(f"plugin {self.context.name} {what} a message of {hook} by a hold that is over")

    cdef int check_open(self, str what) except -1:
        self.context.check_open(what)
        if self.message is None:
            raise NotHeld(f"plugin {self.context.name}: {what}: the hold, in {<str>self.hook}, is over")
        return 0

    cdef void callback_raised(self, object error) noexcept:
        """Rule 13: the step fails, or goes on when the plugin's config says so."""
        cdef Message message = self.message
        error = self.context.failure(error, <str>self.hook)
        try:
            if message is not None and has_control(self.context, message):
                if self.context.forgiving and not ends_program(error):
                    give_back(self.context, message, TO_CONTINUE, None)
                else:
                    give_back(self.context, message, TO_FAIL, error)
        finally:
            if ends_program(error):
                self.reactor.raise_through_loop(error)

    def __repr__(self):
        state = "over" if self.message is None else "live"
        return f"<mqcore.Hold by plugin {self.context.name} in {<str>self.hook}, {state}>"


seal(Context)
seal(Hold)
