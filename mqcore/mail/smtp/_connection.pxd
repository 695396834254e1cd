# One client of the SMTP or LMTP server.

from ..._dispatcher cimport Dispatcher
from ..._hook cimport Hook
from .._mail cimport Connection, Mail
from ...smtp._protocol cimport ServerProtocol
from .._gateway cimport Gateway
from .._transaction cimport Transaction
from ...smtp._data cimport DataReceiver
from ._counters cimport SmtpCounters
from ._host cimport Host
from ._incoming cimport Incoming

cdef class SmtpConnection

cdef enum Stage:
    # Whose step a connection is in, or was in last.
    CONNECT
    SECURE
    LOGIN
    SENDER
    RECIPIENT
    DATA

cdef class SmtpTransaction(Transaction):
    cdef SmtpConnection connection
    cdef Host host
    cdef Py_ssize_t reserved            # octets that count against the server's memory until it is released

cdef class SmtpConnection:
    cdef Host host
    cdef str peer                   # what was said of the client before it was heard; None if nothing
    cdef Dispatcher dispatcher
    cdef Gateway gateway
    cdef SmtpCounters counters
    cdef readonly object transport
    cdef readonly Connection info   # what plugins see of it
    cdef readonly ServerProtocol protocol
    cdef Mail message               # what all stages but `mq_smtp_in_message` get
    cdef object resume              # `_resume`, made once
    cdef str address                # the recipient that a step is about, whatever plugins make of it
    cdef Incoming incoming          # the transaction that is open, or was last; None if there was none
    cdef bint drops_all             # a plugin discards all that comes in this connection
    cdef bytes trace                # how it begins: always the same, for this name of the client and this kind of protocol
    cdef object traced_helo
    cdef int traced_kind
    cdef SmtpTransaction transaction
    cdef object timeline            # of the transaction, if somebody wants to see it; else None
    cdef object tls_task
    cdef object delayed             # the timer of the reply to a failed login
    cdef int failed_logins
    cdef double since               # when the client was last told something
    cdef double begun               # when it said MAIL
    cdef Py_ssize_t reserved
    cdef Stage stage
    cdef bint is_stepping
    cdef bint is_proceeding
    cdef bint is_blocked
    cdef bint is_lost
    cdef bint is_ended              # the client sends no more
    cdef readonly bint is_paused

    cdef double time(self) noexcept
    cdef int cancel_steps(self) except -1
    cdef int pause(self) except -1
    cdef int proceed(self) except -1
    cdef int flush(self) except -1
    cdef int run(self, Hook hook, Stage stage, tuple arguments) except -1
    cdef int end_stage(self, outcome) except -1
    cdef bint answer(self, outcome, failed=*) except -1
    cdef int note(self, rejection, outcome) except -1
    cdef object run_seen(self, Hook hook, tuple arguments)
    cdef int begin_timeline(self) except -1
    cdef int note_replies(self, Py_ssize_t count) except -1
    cdef int end_timeline(self, str reason) except -1
    cdef int count_handshake(self) except -1
    cdef int end_transaction(self) except -1
    cdef int note_faults(self) except -1
    cdef int begin_stage(self, payload) except -1
    cdef int discard(self) except -1
    cdef int introduce(self, unsigned long long number, str peer, helo) except -1
    cdef int begin_again(self, dict known) except -1
    cdef int start_tls(self) except -1
    cdef int after_login(self, outcome) except -1
    cdef int delay_refusal(self, outcome) except -1
    cdef bint cancel_delayed(self) except -1
    cdef int mail_from(self, str address) except -1
    cdef int rcpt_to(self, str address) except -1
    cdef int take_message(self, DataReceiver receiver) except -1
    cdef bytes make_trace(self)
    cdef int after_data(self, outcome) except -1
    cdef int drop_message(self) except -1
    cdef int settled(self, verdict) except -1
    cdef int settled_each(self, list verdicts) except -1
    cdef int refuse_message(self, rejection) except -1
    cdef int refuse_sender(self, rejection) except -1
    cdef int forget_message(self) except -1
    cdef bint reserve(self, Py_ssize_t size) except -1
