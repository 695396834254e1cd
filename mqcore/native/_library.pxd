# The shared objects of native plugins, and when they leave memory.

cdef struct Opened:
    # A shared object that was opened.
    Opened *next            # in the list of those that nothing refers to any more
    void *pointer           # of dlopen()
    void *base              # where its file is in memory
    char *path              # in the same allocation

cdef class Library:
    """A shared object: its functions refer to it."""
    cdef Opened *opened
    cdef bint may_close     # nothing in it can be called once mqcore calls nothing in it
    cdef bint begun         # mq_initialize was called, and mq_cleanup, if there is one, was not yet

    cdef void *find(self, str name) except? NULL

cdef Library open_object(str path, bint may_close)
