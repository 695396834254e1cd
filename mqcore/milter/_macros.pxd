# What a mail server says beside, as macros.

cdef enum Place:
    # Of the macros of a stage. From `FIRST_OF_MESSAGE` on they are those of one message.
    CONNECT_MACROS = 0
    HELO_MACROS
    OTHER_MACROS
    SENDER_MACROS
    RECIPIENT_MACROS
    DATA_MACROS
    FIELD_MACROS
    HEADER_MACROS
    BODY_MACROS
    END_MACROS
    PLACES
    FIRST_OF_MESSAGE = SENDER_MACROS

cdef class Macros:
    cdef list known                 # at their places, as they came: most are never looked at
    cdef bytes next_sender          # those of the next MAIL
    cdef dict merged                # what `all` gives, as long as it holds
    cdef bint is_postfix

    cdef int define(self, const char *data, Py_ssize_t size) except -1
    cdef str find(self, bytes name)
    cdef dict all(self)
    cdef int begin_message(self) except -1
    cdef int forget(self, int first) except -1

cdef str decoded(const char *data, Py_ssize_t size)
cdef str text_of(bytes data)
cdef list texts_of(bytes data)
