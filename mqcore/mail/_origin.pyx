"""Where a mail is from, made for each message."""

from cpython.object cimport PyObject, PyTypeObject

from .origin import Origin


cdef object new_origin(bytes mime, str id, number, envelope=None, received=None, recipient=None, bint comes_again=False,
                       bint is_traced=False, loops=0, hops=0, utf8=None, from_line=None, sort_time=None):
    """An `Origin` of no Maildir. Calling that costs twice as much, and so does tuple.__new__."""
    cdef tuple fields = (mime, id, number, envelope, received, from_line, None, recipient, None, sort_time, comes_again,
                         is_traced, loops, hops, utf8)
    cdef tuple given = (fields,)
    return (<PyTypeObject *>tuple).tp_new(Origin, <PyObject *>given, NULL)
