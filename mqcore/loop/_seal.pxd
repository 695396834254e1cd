# Types whose objects are made by mqcore alone.
#
# Cython's own `X.__new__(X)` in the module that defines X calls the C function, not the type's slot: so the slot may refuse. A
# call of the type itself would go past that slot where Cython gave it a faster one.

cdef extern from *:
    """
    static PyObject *mqcore_refuse_new(PyTypeObject *type)
    {
        const char *dot = strrchr(type->tp_name, '.');
        return PyErr_Format(PyExc_TypeError, "%.100s objects are made by mqcore alone", dot == NULL ? type->tp_name : dot + 1);
    }

    static PyObject *mqcore_sealed_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
    {
        (void)args;
        (void)kwargs;
        return mqcore_refuse_new(type);
    }

    static inline void mqcore_seal(PyObject *type)
    {
        ((PyTypeObject *)type)->tp_new = mqcore_sealed_new;
        ((PyTypeObject *)type)->tp_vectorcall = NULL;  /* a call goes through the slot */
        PyType_Modified((PyTypeObject *)type);
    }

    /* A base type: the C types that are derived from it call its slot. */
    enum { MQCORE_MOST_BASES = 8 };
    static struct { PyTypeObject *type; newfunc make; } mqcore_bases[MQCORE_MOST_BASES];

    static PyObject *mqcore_sealed_base_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
    {
        PyTypeObject *base = PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE) ? NULL : type->tp_base;
        for (; base != NULL; base = base->tp_base)
            for (int each = 0; each < MQCORE_MOST_BASES && mqcore_bases[each].type != NULL; each++)
                if (mqcore_bases[each].type == base)
                    return mqcore_bases[each].make(type, args, kwargs);
        return mqcore_refuse_new(type);
    }

    static inline int mqcore_seal_base(PyObject *type)
    {
        for (int each = 0; each < MQCORE_MOST_BASES; each++)
            if (mqcore_bases[each].type == NULL) {
                mqcore_bases[each].type = (PyTypeObject *)type;
                mqcore_bases[each].make = ((PyTypeObject *)type)->tp_new;
                ((PyTypeObject *)type)->tp_new = mqcore_sealed_base_new;
                ((PyTypeObject *)type)->tp_vectorcall = NULL;
                PyType_Modified((PyTypeObject *)type);
                return 0;
            }
        PyErr_SetString(PyExc_SystemError, "too many sealed base types in one module");
        return -1;
    }
    """
    # Once for each type, where its module ends.
    void seal "mqcore_seal"(object type)
    int seal_base "mqcore_seal_base"(object type) except -1
