# Hooks of plugins in Cython: C functions of Python objects, called without the Python calling convention.

from ._context cimport Context
from ._message cimport Message

# Returns what a hook may return. Extra arguments of the hook are in `message.args`, a tuple.
ctypedef object (*HookFunction)(Context context, Message message)

cdef object c_hook(HookFunction function, type message_type)
