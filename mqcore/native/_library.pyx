"""The shared objects of native plugins, and when they leave memory.

The functions of a plugin refer to its Library, and chains and contexts to them. So when nothing refers to it, no call of it can
begin any more; what is being called just then is waited for, until no thread is in native code. Its timers and watchers ended
with its contexts. What that leaves is what the plugin's own code may have started: threads, signal handlers, callbacks of the
loop. Only a library that has no function for any of that, as `may_close` says, is closed; all others stay for good.
"""

import os

cimport cython
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from ..loop._dl cimport RTLD_LAZY, RTLD_LOCAL, RTLD_NOLOAD, RTLD_NOW, dlclose, dlerror, dlopen, dlsym
from ..loop._seal cimport seal
from ._diagnostics cimport base_of, forget_library, is_any_in_lifecycle_call
from ._slots cimport is_any_inside

cdef Opened *idle = NULL        # those that may be closed
cdef int open_count = 0         # of all that were opened and not closed


@cython.final
@cython.no_gc
cdef class Library:

    def __dealloc__(self):
        global idle
        if self.opened != NULL and self.may_close and not self.begun:  # else it stays in memory, for good
            self.opened.next = idle
            idle = self.opened

    cdef void *find(self, str name) except? NULL:
        """The function of that name; NULL where there is none."""
        cdef void *address = dlsym(self.opened.pointer, <bytes>name.encode())
        if address != NULL and self.opened.base == NULL:
            self.opened.base = base_of(address)
        return address


cdef Library open_object(str path, bint may_close):
    """Open the shared object. Raises OSError with what the dynamic linker says. Its constructors are run, and nothing else."""
    global open_count
    cdef bytes file = os.fsencode(path)
    cdef const char *name = file
    cdef Library library = Library.__new__(Library)
    cdef Opened *opened = <Opened *>malloc(sizeof(Opened) + len(file) + 1)
    if opened == NULL:
        raise MemoryError
    with nogil:
        opened.pointer = dlopen(name, RTLD_NOW | RTLD_LOCAL)
    if opened.pointer == NULL:
        free(opened)
        raise OSError(os.fsdecode(dlerror()))
    open_count += 1
    opened.path = <char *>opened + sizeof(Opened)
    memcpy(opened.path, name, len(file) + 1)
    opened.base = NULL
    library.opened = opened
    library.may_close = may_close
    return library


def count_open():
    """How many shared objects of native plugins are in memory."""
    return open_count


def close_idle():
    """Close the shared objects that nothing refers to any more, if no thread is in native code just now. The paths of those
    that have left memory."""
    global idle, open_count
    cdef Opened *opened
    closed = []
    while idle != NULL and not is_any_inside() and not is_any_in_lifecycle_call():
        opened = idle
        path = os.fsdecode(opened.path)
        idle = opened.next
        forget_library(opened.base)
        if close_object(opened):
            open_count -= 1
            closed.append(path)
        free(opened)
    return closed


cdef bint close_object(Opened *opened) noexcept:
    """Whether it has left memory: somebody else may have opened it, too, and some say of themselves that they never do."""
    cdef void *still
    with nogil:
        dlclose(opened.pointer)  # its destructors run
        still = dlopen(opened.path, RTLD_LAZY | RTLD_NOLOAD)
        if still != NULL:
            dlclose(still)
    return still == NULL


seal(Library)
