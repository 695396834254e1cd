# Calls of Python functions at the least cost: arguments in a C array, and a result that may be NULL.

from cpython.object cimport PyObject

cdef extern from *:
    """
    /* PyObject_Vectorcall without its checks of the result; the pointer is read each time, for it may change. */
    static inline PyObject *mqcore_call(PyObject *callable, PyObject *const *arguments, size_t count)
    {
        PyTypeObject *type = Py_TYPE(callable);
        vectorcallfunc function;
        count |= PY_VECTORCALL_ARGUMENTS_OFFSET;
        if (PyType_HasFeature(type, Py_TPFLAGS_HAVE_VECTORCALL)) {
            memcpy(&function, (char *)callable + type->tp_vectorcall_offset, sizeof function);
            if (function != NULL)
                return function(callable, arguments, count, NULL);
        }
        return PyObject_Vectorcall(callable, arguments, count, NULL);
    }

    static inline PyObject *mqcore_raised(void)
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
    """
    # A new reference, or NULL when it raised. A bound method uses the place before the first argument: there must be one.
    PyObject *call_function "mqcore_call"(PyObject *callable, PyObject *const *arguments, size_t count) noexcept
    # The exception of a call that gave NULL; it is cleared.
    object what_was_raised "mqcore_raised"()
