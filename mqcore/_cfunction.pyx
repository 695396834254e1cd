"""Hooks of plugins in Cython: C functions of Python objects, called without the Python calling convention."""

from ._context cimport Context
from ._message cimport Message

cdef extern from *:
    """
    /* A callable that a C function is behind. Made once for each hook of a plugin. */
    typedef struct {
        PyObject_HEAD
        vectorcallfunc vectorcall;
        PyObject *(*function)(PyObject *, PyObject *);
        PyTypeObject *context_type, *message_type;
    } mqcore_Hook;

    static PyObject *mqcore_hook_wrong(mqcore_Hook *self)
    {
        return PyErr_Format(PyExc_TypeError, "this hook takes a Context and a %s", self->message_type->tp_name);
    }

    static PyObject *mqcore_hook_call(PyObject *callable, PyObject *const *arguments, size_t count, PyObject *names)
    {
        mqcore_Hook *self = (mqcore_Hook *)callable;
        if (PyVectorcall_NARGS(count) < 2 || names != NULL || !Py_IS_TYPE(arguments[0], self->context_type)
            || !PyObject_TypeCheck(arguments[1], self->message_type))
            return mqcore_hook_wrong(self);
        return self->function(arguments[0], arguments[1]);
    }

    static void mqcore_hook_dealloc(PyObject *self)
    {
        Py_DECREF(((mqcore_Hook *)self)->message_type);
        PyObject_Free(self);
    }

    static PyTypeObject mqcore_HookType = {
        PyVarObject_HEAD_INIT(NULL, 0)
        .tp_name = "mqcore.c_hook",
        .tp_basicsize = sizeof(mqcore_Hook),
        .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
        .tp_vectorcall_offset = offsetof(mqcore_Hook, vectorcall),
        .tp_call = PyVectorcall_Call,
        .tp_dealloc = mqcore_hook_dealloc,
    };

    static PyObject *mqcore_new_hook(void *function, PyTypeObject *context_type, PyTypeObject *message_type)
    {
        mqcore_Hook *hook;
        if (PyType_Ready(&mqcore_HookType) < 0 || (hook = PyObject_New(mqcore_Hook, &mqcore_HookType)) == NULL)
            return NULL;
        hook->vectorcall = mqcore_hook_call;
        hook->function = (PyObject *(*)(PyObject *, PyObject *))function;
        hook->context_type = context_type;
        Py_INCREF(message_type);
        hook->message_type = message_type;
        return (PyObject *)hook;
    }
    """
    object new_hook "mqcore_new_hook"(void *function, type context_type, type message_type)


cdef object c_hook(HookFunction function, type message_type):
    """A hook to put into a plugin: calls `function(context, message)` in C, for messages of `message_type`.

    `function` may declare its message as that type. Another message is a TypeError, which fails the step. Callable from
    Python, too. Raises TypeError for a type that is not of messages.
    """
    if function == NULL or message_type is None or not issubclass(message_type, Message):
        raise TypeError(f"c_hook() needs a function and a class of messages, not {message_type!r}")
    return new_hook(<void *>function, Context, message_type)
