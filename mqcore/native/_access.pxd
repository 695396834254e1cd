# How the functions of mqcore.h reach what Python has: the accessors of a message's class.

from .._context cimport Context
from ..loop._atomic cimport load
from ._slots cimport CALLED, HELD_BY, STEP, Slot, generation_in, generation_of, get_kind, state_of
from libc.stdint cimport uint64_t

cdef struct Access:
    # What a plugin asks for or gives, and what it gets: where an accessor raises, what was here before.
    void *handle
    const void *given           # bytes or text of the plugin's, which are copied; NULL: None
    size_t size
    int number                  # or a flag
    const char *text            # kept as long as the handle
    void *pointer

# What there is to do with the accessor of that name, with the GIL.
ctypedef int (*access_function)(Access *access, str name) except -1

cdef inline Access new_access(void *handle) noexcept nogil:
    cdef Access access = [handle, NULL, 0, 0, NULL, NULL]
    return access

cdef inline bint in_control(Slot *slot, void *handle) noexcept nogil:
    """Whether the plugin with this handle has control of the step."""
    cdef uint64_t word = load(&slot.word)
    return (get_kind(&slot.kind) == STEP and generation_of(word) == generation_in(handle)
            and (state_of(word) == CALLED or state_of(word) == HELD_BY))

cdef void use(access_function function, Access *access, str name) noexcept
cdef int ask_flag(Access *access, str name) except -1
cdef int ask_number(Access *access, str name) except -1
cdef int ask_presence(Access *access, str name) except -1
cdef int ask_text(Access *access, str name) except -1
cdef int ask_size(Access *access, str name) except -1
cdef int ask_field(Access *access, str name) except -1
cdef int ask_reject(Access *access, str name) except -1
cdef const char *find_setting(Context context, Slot *slot, const char *key) noexcept
cdef int ask_email(Access *access, str name) except -1
cdef int pass_flag(Access *access, str name) except -1
cdef int pass_bytes(Access *access, str name) except -1
cdef int pass_text(Access *access, str name) except -1
cdef int pass_field(Access *access, str name) except -1
cdef int get_data(Access *access, str name) except -1
cdef int set_data(Access *access, str name) except -1
cdef void *find_symbol(Context context, const char *name) noexcept
cdef void log_unwatched(Context context, int fd, int error) noexcept
