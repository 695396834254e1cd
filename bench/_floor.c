/* The floor under dispatch: what it costs to call the same Python functions with the same arguments from C, and no more.
 *
 * Floor(functions, contexts): run(message) calls function(context, message) one after the other until one takes the
 * message, and run_many(messages) does that for a list; give_back(message) notes it, and drain(done) calls done(message, True)
 * for all that were noted. Nothing is checked that the bench does not need.
 *
 * NativeFloor(paths): the same for the function mq_smtp_in_message of shared objects, called as native plugins are.
 *
 * coroutine_steps(function, messages, loop, task, tasks): call a coroutine function for each message, and make the one step of
 * its coroutine as asyncio asks for it: in a context of its own, as the current task. `tasks`: asyncio's dict of these, and
 * since CPython 3.14 the function that swaps them.
 *
 * counted(function) calls a function in such a way that callgrind finds it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stdbool.h>

typedef struct {
    PyObject *function;
    PyObject *context;
} Entry;

typedef struct {
    PyObject_HEAD
    PyObject *functions;
    PyObject *contexts;
    Entry *entries;
    Py_ssize_t count;
    PyObject **given; /* borrowed: who gives a message back keeps it */
    size_t given_count, given_room;
} Floor;

/* 1: a function took the message; 0: none did; -1: one raised. */
static inline int step(Floor *self, PyObject *message)
{
    PyObject *space[3]; /* a bound method may use the place before the first argument */
    PyObject **arguments = space + 1;
    arguments[1] = message;
    for (Entry *entry = self->entries; entry < self->entries + self->count; entry++) {
        arguments[0] = entry->context;
        PyObject *result = PyObject_Vectorcall(entry->function, arguments, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        if (result == NULL)
            return -1;
        int taken = result != Py_False && result != Py_None;
        Py_DECREF(result);
        if (taken)
            return 1;
    }
    return 0;
}

static PyObject *floor_run(Floor *self, PyObject *message)
{
    int taken = step(self, message);
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

/* A list of bools, as a caller needs to know what became of each message. */
static PyObject *floor_run_many(Floor *self, PyObject *messages)
{
    if (!PyList_Check(messages))
        return PyErr_Format(PyExc_TypeError, "run_many() needs a list");
    PyObject *outcomes = PyList_New(PyList_GET_SIZE(messages));
    if (outcomes == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(outcomes); i++) {
        PyObject *outcome = floor_run(self, PyList_GET_ITEM(messages, i));
        if (outcome == NULL) {
            Py_DECREF(outcomes);
            return NULL;
        }
        PyList_SET_ITEM(outcomes, i, outcome);
    }
    return outcomes;
}

static PyObject *floor_give_back(Floor *self, PyObject *message)
{
    if (self->given_count == self->given_room) {
        size_t room = self->given_room ? 2 * self->given_room : 1024;
        PyObject **given = PyMem_Realloc(self->given, room * sizeof *given);
        if (given == NULL)
            return PyErr_NoMemory();
        self->given = given;
        self->given_room = room;
    }
    self->given[self->given_count++] = message;
    Py_RETURN_NONE;
}

static PyObject *floor_drain(Floor *self, PyObject *done)
{
    PyObject *space[3];
    PyObject **arguments = space + 1;
    arguments[1] = Py_True;
    for (size_t i = 0; i < self->given_count; i++) {
        arguments[0] = self->given[i];
        PyObject *result = PyObject_Vectorcall(done, arguments, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        if (result == NULL)
            return NULL;
        Py_DECREF(result);
    }
    self->given_count = 0;
    Py_RETURN_NONE;
}

static PyObject *floor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *functions, *contexts;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &functions, &PyTuple_Type, &contexts))
        return NULL;
    if (PyTuple_GET_SIZE(functions) != PyTuple_GET_SIZE(contexts))
        return PyErr_Format(PyExc_ValueError, "as many contexts as functions");
    Floor *self = (Floor *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->functions = Py_NewRef(functions);
    self->contexts = Py_NewRef(contexts);
    self->count = PyTuple_GET_SIZE(functions);
    self->entries = PyMem_New(Entry, self->count);
    if (self->entries == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < self->count; i++) {
        self->entries[i].function = PyTuple_GET_ITEM(functions, i);
        self->entries[i].context = PyTuple_GET_ITEM(contexts, i);
    }
    return (PyObject *)self;
}

static void floor_dealloc(Floor *self)
{
    PyMem_Free(self->entries);
    PyMem_Free(self->given);
    Py_XDECREF(self->functions);
    Py_XDECREF(self->contexts);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* With what it is called with: each plugin has a context of its own, and a message and its connection are two handles. */
typedef struct {
    bool (*hook)(void *context, void *connection, void *message);
    void *context;
} Plugin;

typedef struct {
    PyObject_HEAD
    Plugin *plugins;
    Py_ssize_t count;
} NativeFloor;

static PyObject *native_floor_run_many(NativeFloor *self, PyObject *messages)
{
    if (!PyList_Check(messages))
        return PyErr_Format(PyExc_TypeError, "run_many() needs a list");
    PyObject *outcomes = PyList_New(PyList_GET_SIZE(messages));
    if (outcomes == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(outcomes); i++) {
        char *message = (char *)PyList_GET_ITEM(messages, i);
        bool taken = false;
        for (Plugin *each = self->plugins, *end = each + self->count; each < end && !taken; each++)
            taken = each->hook(each->context, message, message + 1);
        PyList_SET_ITEM(outcomes, i, PyBool_FromLong(taken));
    }
    return outcomes;
}

static PyObject *native_floor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *paths;
    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &paths))
        return NULL;
    NativeFloor *self = (NativeFloor *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->count = PyTuple_GET_SIZE(paths);
    self->plugins = PyMem_New(Plugin, self->count);
    if (self->plugins == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < self->count; i++) {
        const char *path = PyUnicode_AsUTF8(PyTuple_GET_ITEM(paths, i));
        void *library = path == NULL ? NULL : dlopen(path, RTLD_NOW | RTLD_LOCAL);
        *(void **)&self->plugins[i].hook = library == NULL ? NULL : dlsym(library, "mq_smtp_in_message");
        self->plugins[i].context = &self->plugins[i];
        if (self->plugins[i].hook == NULL) {
            Py_DECREF(self);
            return PyErr_Format(PyExc_OSError, "%s", dlerror());
        }
    }
    return (PyObject *)self;
}

static void native_floor_dealloc(NativeFloor *self)
{
    PyMem_Free(self->plugins);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* callgrind counts from the start of this function to its end. */
__attribute__((noinline)) PyObject *bench_counted(PyObject *function)
{
    return PyObject_CallNoArgs(function);
}

static PyObject *counted(PyObject *self, PyObject *function)
{
    return bench_counted(function);
}

static int swap_task(PyObject *tasks, PyObject *loop, PyObject *task, PyObject **before)
{
    if (!PyDict_Check(tasks)) {
        PyObject *arguments[] = {loop, task == NULL ? Py_None : task};
        *before = PyObject_Vectorcall(tasks, arguments, 2, NULL);
        return *before == NULL ? -1 : 0;
    }
    *before = Py_XNewRef(PyDict_GetItemWithError(tasks, loop));
    if (task == NULL)
        return PyDict_DelItem(tasks, loop);
    return PyDict_SetItem(tasks, loop, task);
}

static int coroutine_step(PyObject *function, PyObject *message, PyObject *loop, PyObject *task, PyObject *tasks)
{
    PyObject *arguments[] = {Py_None, message};
    PyObject *before, *ignored, *result = NULL;
    PyObject *context = PyContext_CopyCurrent();
    PyObject *coroutine = context == NULL ? NULL : PyObject_Vectorcall(function, arguments, 2, NULL);
    if (coroutine == NULL || PyContext_Enter(context) < 0 || swap_task(tasks, loop, task, &before) < 0)
        return -1;
    PySendResult progress = PyIter_Send(coroutine, Py_None, &result);
    if (progress == PYGEN_ERROR || swap_task(tasks, loop, before, &ignored) < 0 || PyContext_Exit(context) < 0)
        return -1;
    Py_XDECREF(before);
    Py_XDECREF(ignored);
    Py_DECREF(result);
    Py_DECREF(coroutine);
    Py_DECREF(context);
    return 0;
}

static PyObject *coroutine_steps(PyObject *self, PyObject *args)
{
    PyObject *function, *messages, *loop, *task, *tasks;
    if (!PyArg_ParseTuple(args, "OO!OOO", &function, &PyList_Type, &messages, &loop, &task, &tasks))
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(messages); i++)
        if (coroutine_step(function, PyList_GET_ITEM(messages, i), loop, task, tasks) < 0)
            return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef module_functions[] = {
    {"coroutine_steps", coroutine_steps, METH_VARARGS, NULL},
    {"counted", counted, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef floor_methods[] = {
    {"run", (PyCFunction)floor_run, METH_O, NULL},
    {"run_many", (PyCFunction)floor_run_many, METH_O, NULL},
    {"give_back", (PyCFunction)floor_give_back, METH_O, NULL},
    {"drain", (PyCFunction)floor_drain, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject floor_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "_floor.Floor",
    .tp_basicsize = sizeof(Floor),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = floor_new,
    .tp_dealloc = (destructor)floor_dealloc,
    .tp_methods = floor_methods,
};

static PyMethodDef native_floor_methods[] = {
    {"run_many", (PyCFunction)native_floor_run_many, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject native_floor_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "_floor.NativeFloor",
    .tp_basicsize = sizeof(NativeFloor),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = native_floor_new,
    .tp_dealloc = (destructor)native_floor_dealloc,
    .tp_methods = native_floor_methods,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_floor", .m_size = -1, .m_methods = module_functions};

PyMODINIT_FUNC PyInit__floor(void)
{
    PyObject *self = PyModule_Create(&module);
    if (self == NULL || PyModule_AddType(self, &floor_type) < 0
        || PyModule_AddType(self, &native_floor_type) < 0) {
        Py_XDECREF(self);
        return NULL;
    }
    return self;
}
