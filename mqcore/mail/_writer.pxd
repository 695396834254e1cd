# What the plugins are done with, on its way to the sinks.

cdef class Job:
    cdef object mails               # a sequence of pairs, each of a Mail and its outcome
    cdef object done
    cdef list good                  # such pairs
    cdef list bad                   # Mails

cdef class Writer:
    cdef object sink
    cdef object failed
    cdef object report
    cdef object counts
    cdef object on_error
    cdef object jobs                # a deque
    cdef object work                # an asyncio.Event
    cdef set broken                 # sinks
    cdef bint waits
    cdef bint closed

    cpdef int add(self, mails, done) except -1
    cdef list next_group(self)
    cdef int count_set_aside(self, list bad) except -1
    cdef int count_stored(self, list good) except -1
