# How errors are told.

from ._libuv cimport Library

cdef const char *type_name(object error) noexcept
cdef int try_log(object logger, int level, str text, tuple args, object error) except -1
cdef int try_report(object loop, Library library, object error, str where) except -1
cdef int try_log_failure(object error, str where) except -1
cdef int try_raise_through_loop(object loop, Library library, object error) except -1
