# The types of native plugins, as mqcore.h has them.

cdef extern from *:
    """
    #pragma GCC visibility push(default)  /* what is declared here is exported, and nothing else */
    #include "mqcore.h"
    #pragma GCC visibility pop
    """
    ctypedef bint c_bool "bool"
    ctypedef struct MQ_Context:
        pass
    ctypedef struct MQ_Connection:
        pass
    ctypedef struct MQ_Message:
        pass
    ctypedef struct MQ_Address:
        pass
    ctypedef struct MQ_IOWatcher:
        pass
    ctypedef struct MQ_Timer:
        pass
    cdef struct uv_loop_s:
        pass
