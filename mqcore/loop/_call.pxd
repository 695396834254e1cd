# Calls of Python functions at the least cost, and the errors that they raise, where Cython's own way would lose them.
#
# A `noexcept` function must not be left by an exception: Cython would print it and go on after the call, with work undone. So
# what can raise is an `except -1` function; the one `noexcept` caller at a boundary calls it by a pointer that is `noexcept`
# too, and takes the exception with `take_error` when the result is -1.

from cpython.object cimport PyObject

cdef extern from *:
    """
    /* PyObject_Vectorcall without its checks of the result; the pointer is read each time, for it may change. */
    static inline PyObject *mqcore_call(PyObject *callable, PyObject *const *arguments, size_t count_and_room)
    {
        PyTypeObject *type = Py_TYPE(callable);
        vectorcallfunc function;
        if (PyType_HasFeature(type, Py_TPFLAGS_HAVE_VECTORCALL)) {
            memcpy(&function, (char *)callable + type->tp_vectorcall_offset, sizeof function);
            if (function != NULL)
                return function(callable, arguments, count_and_room, NULL);
        }
        return PyObject_Vectorcall(callable, arguments, count_and_room, NULL);
    }

    static inline PyObject *mqcore_take_error(void)
    {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_SystemError, "a function returned NULL without an exception");
    #if PY_VERSION_HEX >= 0x030C0000
        return PyErr_GetRaisedException();
    #else
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyErr_NormalizeException(&type, &value, &traceback);
        if (traceback != NULL)
            PyException_SetTraceback(value, traceback);
        Py_XDECREF(type);
        Py_XDECREF(traceback);
        return value;
    #endif
    }

    /* By its class alone: isinstance() asks the object, too. */
    #define mqcore_is_a(object, type) PyObject_TypeCheck(object, (PyTypeObject *)(type))
    """
    # A new reference, or NULL when it raised. `count | ROOM`: a bound method uses the place before the first argument.
    size_t ROOM "PY_VECTORCALL_ARGUMENTS_OFFSET"
    PyObject *call_function "mqcore_call"(PyObject *callable, PyObject *const *arguments, size_t count_and_room) noexcept
    # The exception of a call that gave NULL or -1: a new reference, never NULL. It is cleared.
    PyObject *take_error "mqcore_take_error"() noexcept
    # The same where errors are no concern.
    object what_was_raised "mqcore_take_error"()
    bint is_a "mqcore_is_a"(object, PyObject *type) noexcept

cdef extern from "Python.h":
    PyObject *PyExc_KeyboardInterrupt
    PyObject *PyExc_SystemExit

cdef inline bint ends_program(object error) noexcept:
    """Whether it has to leave through the loop."""
    return is_a(error, PyExc_KeyboardInterrupt) or is_a(error, PyExc_SystemExit)
