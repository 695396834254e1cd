# What asyncio has in C: the task that runs, and attributes of futures and tasks, past the search for them.

from cpython.object cimport PyObject

cdef extern from *:
    """
    /* Make a task the one that runs. `*before`: a new reference to that of before; NULL or None: there was none. */
    #if PY_VERSION_HEX < 0x030E0000
    static inline int mqcore_enter_task(PyObject *tasks, PyObject *loop, PyObject *task, PyObject **before)
    {
        PyObject *there = PyDict_SetDefault(tasks, loop, task); /* where none runs, one search does it */
        if (there == NULL)
            return -1;
        *before = NULL;
        if (there == task)
            return 0;
        *before = Py_NewRef(there);
        if (PyDict_SetItem(tasks, loop, task) == 0)
            return 0;
        Py_CLEAR(*before);
        return -1;
    }

    static inline int mqcore_leave_task(PyObject *tasks, PyObject *loop, PyObject *before)
    {
        if (before == NULL)
            return PyDict_DelItem(tasks, loop);
        int done = PyDict_SetItem(tasks, loop, before);
        Py_DECREF(before);
        return done;
    }
    #else
    static inline int mqcore_enter_task(PyObject *swap, PyObject *loop, PyObject *task, PyObject **before)
    {
        PyObject *arguments[] = {loop, task};
        *before = PyObject_Vectorcall(swap, arguments, 2, NULL);
        return *before == NULL ? -1 : 0;
    }

    static inline int mqcore_leave_task(PyObject *swap, PyObject *loop, PyObject *before)
    {
        PyObject *task;
        int done = mqcore_enter_task(swap, loop, before, &task);
        Py_DECREF(before);
        Py_XDECREF(task);
        return done;
    }
    #endif

    /* Attributes, past the search for them. The object has to be a future or task of asyncio's own: nobody looks. */
    static inline int mqcore_set_attribute(PyObject *descriptor, PyObject *object, PyObject *value)
    {
        PyGetSetDef *attribute = ((PyGetSetDescrObject *)descriptor)->d_getset;
        return attribute->set(object, value, attribute->closure);
    }

    /* Whether that is what it is; what cannot be asked is not. `value` is compared by its address, and lives. */
    static inline int mqcore_attribute_is(PyObject *descriptor, PyObject *object, PyObject *value)
    {
        PyGetSetDef *attribute = ((PyGetSetDescrObject *)descriptor)->d_getset;
        PyObject *found = attribute->get(object, attribute->closure);
        if (found == NULL)
            PyErr_Clear();
        Py_XDECREF(found);
        return found == value;
    }

    #define mqcore_is_exactly(object, type) Py_IS_TYPE(object, (PyTypeObject *)(type))

    static inline PyObject *mqcore_weakrefs(PyObject *object)
    {
        return *(PyObject **)PyObject_GET_WEAKREFS_LISTPTR(object);
    }

    static inline int mqcore_has_attributes(PyObject *object)
    {
        PyObject **attributes = _PyObject_GetDictPtr(object);
        /* Since CPython 3.15, to ask makes a dict where there is none. */
        return attributes != NULL && *attributes != NULL && PyDict_GET_SIZE(*attributes) != 0;
    }
    """
    # Pointers, so that nothing is counted that is kept anyway.
    int enter_task "mqcore_enter_task"(PyObject *tasks, PyObject *loop, PyObject *task, PyObject **before) noexcept
    int leave_task "mqcore_leave_task"(PyObject *tasks, PyObject *loop, PyObject *before) noexcept  # steals the reference
    int set_by "mqcore_set_attribute"(PyObject *descriptor, PyObject *, PyObject *value) except -1
    int set_flag "mqcore_set_attribute"(PyObject *descriptor, PyObject *, PyObject *value) noexcept  # a bool
    bint attribute_is "mqcore_attribute_is"(PyObject *descriptor, PyObject *, PyObject *value) noexcept
    bint is_exactly "mqcore_is_exactly"(PyObject *, PyObject *type) noexcept
    PyObject *weakrefs_of "mqcore_weakrefs"(PyObject *) noexcept
    bint has_attributes "mqcore_has_attributes"(PyObject *) noexcept
