# SMTP and LMTP as a server speaks them, without any I/O.

from ._data cimport DataReceiver
from ._terms cimport Terms

cdef enum Due:
    # What `accept` or `reject` is to answer.
    NOTHING = 0
    GREETING
    MAIL_FROM
    RCPT_TO
    MESSAGE
    AUTHENTICATE
    START_TLS

cdef enum Expected:
    # What the next line is: a command, or in the exchange of AUTH what was asked for.
    COMMAND = 0
    PLAIN
    LOGIN
    PASSWORD

cdef class ServerProtocol:
    cdef Terms terms
    cdef bytes buffer
    cdef Py_ssize_t at              # how much of the buffer was taken
    cdef bytes out                  # what is to be sent; None if nothing is
    cdef list long_out              # what goes before that; None if it is not much
    cdef Due due
    cdef Expected expected
    cdef str login                  # in the exchange of AUTH LOGIN
    cdef str refusal                # the reply to all commands but QUIT
    cdef list faults                # (stage, address, reply) of what was refused here; None if nothing was
    cdef unsigned int errors
    cdef unsigned int idle_commands
    cdef unsigned int recipients    # accepted in this transaction
    cdef bint skipping              # within a line that is too long
    cdef bint shutting_down
    cdef bint utf8                  # the client said SMTPUTF8 in MAIL
    cdef bint extended              # it said EHLO
    cdef bint must_secure           # it has to begin TLS first
    cdef readonly bint secure
    cdef readonly bint authenticated
    cdef readonly bint closed
    cdef readonly bint in_transaction
    cdef readonly str helo
    cdef readonly dict dsn
    cdef readonly dict forwarded
    cdef public bint may_xclient
    cdef public bint may_xforward
    cdef readonly DataReceiver receiver

    # What the host calls
    cpdef int receive(self, bytes data) except -1
    cpdef object next_event(self)
    cpdef bytes take_output(self)
    cpdef int accept(self, str text=*) except -1
    cpdef int reject(self, int code, str text) except -1
    cpdef int answer_each(self, list replies) except -1

    # What it says
    cdef int put(self, bytes reply) except -1
    cdef int say(self, str reply) except -1
    cdef int put_to_others(self, bytes reply) except -1
    cdef int say_to_others(self, str reply) except -1
    cdef int say_idly(self, str reply) except -1
    cdef int complain(self, str reply) except -1
    cdef int note(self, str line, str reply) except -1
    cdef list take_faults(self)
    cdef int count_error(self) except -1
    cdef int close(self, str reply) except -1
    cdef int reset(self) except -1

    # What it takes
    cdef object next_payload(self)
    cdef str take_line(self)
    cdef bint collect(self) except -1
    cdef DataReceiver end_message(self)
    cdef object obey(self, str line)
    cdef object obey_other(self, str line, const char *text)
    cdef int greet(self, str name) except -1
    cdef int ehlo(self, str name) except -1
    cdef object mail(self, str line)
    cdef str take_sender(self, str argument)
    cdef object take_path(self, str argument, str keyword, str code, str advice)
    cdef int must_be_extended(self) except -1
    cdef object rcpt(self, str line)
    cdef str take_recipient(self, str argument)
    cdef int data(self, str line) except -1
    cdef object starttls(self)
    cdef object begin_again(self, str argument)
    cdef int forward(self, str argument) except -1
    cdef object auth(self, str argument)
    cdef bint takes_passwords(self) except -1
    cdef object take_login(self, str line)
