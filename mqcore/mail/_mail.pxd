# The message that passes through the hooks when what passes is mail.

from .._message cimport Message
from ._spool cimport Spooled

cdef class Connection:
    cdef readonly object id
    cdef readonly str peer
    cdef public object helo
    cdef public bint tls
    cdef public bint authenticated
    cdef public object data         # a dict
    cdef object end                 # what `transport` gives
    cdef Connection whole           # that this is one transaction of; None if it is all of it
    cdef public object forwarded

cdef class Unread:
    # What is known of a mail as its source has it, as long as nobody has asked.
    cdef dict read_known(self)
    cdef object read_origin(self)

cdef class Mail(Message):
    cdef bytes content              # None while a spool has it
    cdef Spooled spooled
    cdef bytes above                # None, or what plugins made of the first `hidden` octets of that, in its header
    cdef Py_ssize_t hidden
    cdef object known               # a dict: what `json` gives; None: `unread` has it
    cdef object whence              # what `origin` gives; likewise
    cdef Unread unread
    cdef public object connection
    cdef object refusal             # what `rejection` gives
    cdef readonly object rejected_by  # the name of the plugin that did, or None
    cdef readonly bint discarded
    cdef object result_list         # what `results` gives; None as long as it is empty and nobody asked
    cdef object transaction         # that it is of, while a step of `mq_smtp_in_message` runs

    cdef int set_bytes(self, bytes mime) except -1
    cdef bytes whole(self)
    cdef Py_ssize_t length(self) noexcept
    cdef object all_known(self)
    cdef object decide(self)

cdef Connection new_connection(object id, str peer, object helo, bint tls, bint authenticated, object transport)
cdef Connection for_transaction(Connection connection, object forwarded)
cdef object address_in(object known, str key)
cdef Mail new_mail(bytes mime, object json, object connection, object origin)
cdef Mail new_unread_mail(bytes mime, Unread unread)
