"""Reporting errors. Each of these functions may itself raise anything; the reactor, which calls them, handles that."""

import logging

from cpython.object cimport PyObject

from ._libuv cimport Library

cdef extern from "Python.h":
    ctypedef struct TypeName "PyTypeObject":
        const char *tp_name

log = logging.getLogger("mqcore")


cdef const char *type_name(object error) noexcept:
    return (<TypeName *>(<PyObject *>error).ob_type).tp_name


cdef int try_log(object logger, int level, str text, tuple args, object error) except -1:
    logger.log(level, text, *args, exc_info=error)
    return 0


cdef int try_report(object loop, Library library, object error, str where) except -1:
    if loop is None:
        log.error("error in %s", where, exc_info=error)
    elif library.owner == "uvloop":
        loop.call_exception_handler({"message": f"error in {where}", "exception": error})
    elif loop.excepthook is not None:
        loop.excepthook(type(error), error, error.__traceback__)
    else:
        log.error("error in %s", where, exc_info=error)
    return 0


cdef int try_log_failure(object error, str where) except -1:
    log.error("error in the loop's exception handler, called for an error in %s", where, exc_info=error)
    return 0


cdef int try_raise_through_loop(object loop, Library library, object error) except -1:
    """1: the loop is stopped, and close() has to raise the error; 0: that is all."""
    if library is None or loop is None:
        log.error("there is no loop, so nothing can end with this error", exc_info=error)
    elif library.owner == "pyuv":
        loop.stop()
        return 1
    elif loop.is_closed():
        log.error("the loop is closed, so nothing can end with this error", exc_info=error)
    else:
        loop.call_soon_threadsafe(throw, error)
    return 0


def throw(error):
    raise error
