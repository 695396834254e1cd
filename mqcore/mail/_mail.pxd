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
    cdef public object transport
    cdef public object forwarded

cdef class Mail(Message):
    cdef bytes content              # None while a spool has it
    cdef Spooled spooled
    cdef object known               # a dict: what `json` gives
    cdef readonly object origin
    cdef public object connection
    cdef object refusal             # what `rejection` gives
    cdef public object results
    cdef object transaction         # that it is of, while a step of `mq_smtp_in_message` runs

    cdef Py_ssize_t length(self) noexcept

cdef object address_in(object known, str key)
cdef Mail new_mail(bytes mime, object json, object connection, object origin)
