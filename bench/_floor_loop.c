/* The floors under timers and fds: libuv's own calls, and epoll with read and write, from C.
 *
 * open_library(path) takes the libuv inside the module at `path` (uvloop's); all but the epoll functions need it. Places are
 * pairs of an fd to read from and one to write to.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { UV_POLL = 8, UV_TIMER = 13, UV_RUN_DEFAULT = 0, UV_READABLE = 1 };

static struct {
    size_t (*loop_size)(void);
    int (*loop_init)(void *);
    int (*run)(void *, int);
    void (*stop)(void *);
    void (*close)(void *, void (*)(void *));
    size_t (*handle_size)(int);
    int (*timer_init)(void *, void *);
    int (*timer_start)(void *, void (*)(void *), uint64_t, uint64_t);
    int (*timer_stop)(void *);
    int (*poll_init)(void *, void *, int);
    int (*poll_start)(void *, int, void (*)(void *, int, int));
} uv;

static void *loop; /* its own */

static PyObject *open_library(PyObject *self, PyObject *path)
{
    void *library = dlopen(PyUnicode_AsUTF8(path), RTLD_NOW | RTLD_NOLOAD);
    if (library == NULL)
        return PyErr_Format(PyExc_OSError, "%s", dlerror());
    *(void **)&uv.loop_size = dlsym(library, "uv_loop_size");
    *(void **)&uv.loop_init = dlsym(library, "uv_loop_init");
    *(void **)&uv.run = dlsym(library, "uv_run");
    *(void **)&uv.stop = dlsym(library, "uv_stop");
    *(void **)&uv.close = dlsym(library, "uv_close");
    *(void **)&uv.handle_size = dlsym(library, "uv_handle_size");
    *(void **)&uv.timer_init = dlsym(library, "uv_timer_init");
    *(void **)&uv.timer_start = dlsym(library, "uv_timer_start");
    *(void **)&uv.timer_stop = dlsym(library, "uv_timer_stop");
    *(void **)&uv.poll_init = dlsym(library, "uv_poll_init");
    *(void **)&uv.poll_start = dlsym(library, "uv_poll_start");
    if (loop == NULL) {
        loop = calloc(1, uv.loop_size());
        uv.loop_init(loop);
    }
    Py_RETURN_NONE;
}

/* -------------------------------------------------------------------------------------------------------------- timers */

static char *timers;
static size_t size, count, fired;

static void on_timer(void *timer)
{
    fired++;
}

static PyObject *open_timers(PyObject *self, PyObject *wanted)
{
    size = uv.handle_size(UV_TIMER);
    count = PyLong_AsSize_t(wanted);
    timers = calloc(count, size); /* kept for as long as the process lives */
    for (size_t i = 0; i < count; i++)
        uv.timer_init(loop, timers + i * size);
    Py_RETURN_NONE;
}

static PyObject *start_and_fire(PyObject *self, PyObject *unused)
{
    fired = 0;
    for (size_t i = 0; i < count; i++)
        uv.timer_start(timers + i * size, on_timer, 1, 0);
    uv.run(loop, UV_RUN_DEFAULT);
    return PyLong_FromSize_t(fired);
}

/* What the callback of a timer calls: fire_and_call() lends it. */
static PyObject *called, *const *call_arguments;

static void on_timer_call(void *timer)
{
    PyObject *result = PyObject_Vectorcall(called, call_arguments, 2, NULL);
    if (result == NULL)
        PyErr_WriteUnraisable(called);
    Py_XDECREF(result);
}

/* fire_and_call(function, message, outcome): a timer for each piece of work, which calls the function. The GIL is kept. */
static PyObject *fire_and_call(PyObject *self, PyObject *args)
{
    if (PyTuple_GET_SIZE(args) != 3)
        return PyErr_Format(PyExc_TypeError, "fire_and_call() needs a function and its two arguments");
    called = PyTuple_GET_ITEM(args, 0);
    call_arguments = &PyTuple_GET_ITEM(args, 1);
    for (size_t i = 0; i < count; i++)
        uv.timer_start(timers + i * size, on_timer_call, 0, 0);
    uv.run(loop, UV_RUN_DEFAULT);
    Py_RETURN_NONE;
}

static PyObject *start_and_stop(PyObject *self, PyObject *unused)
{
    for (size_t i = 0; i < count; i++)
        uv.timer_start(timers + i * size, on_timer, 10000, 0);
    for (size_t i = 0; i < count; i++)
        uv.timer_stop(timers + i * size);
    Py_RETURN_NONE;
}

static PyObject *start_and_stop_in_turn(PyObject *self, PyObject *unused)
{
    for (size_t i = 0; i < count; i++) {
        uv.timer_start(timers, on_timer, 10000, 0);
        uv.timer_stop(timers);
    }
    Py_RETURN_NONE;
}

static PyObject *reset(PyObject *self, PyObject *unused)
{
    for (size_t i = 0; i < count; i++)
        uv.timer_start(timers, on_timer, 10000, 0);
    uv.timer_stop(timers);
    Py_RETURN_NONE;
}

/* `places`: a tuple of (fd to read, fd to write); what one place writes, the next one reads. */
/* ----------------------------------------------------------------------------------------------------- fds, by epoll */

static int epoll, places_count, *reads, *writes;

static PyObject *open_epoll(PyObject *self, PyObject *places)
{
    struct epoll_event event = {.events = EPOLLIN};
    places_count = PyTuple_GET_SIZE(places);
    reads = calloc(places_count, sizeof *reads);
    writes = calloc(places_count, sizeof *writes);
    epoll = epoll_create1(0);
    for (int i = 0; i < places_count; i++) {
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(places, i), "ii", &reads[i], &writes[i]))
            return NULL;
        event.data.u32 = i;
        epoll_ctl(epoll, EPOLL_CTL_ADD, reads[i], &event);
    }
    Py_RETURN_NONE;
}

/* pass_on(count): a byte goes round, read and written so often. */
static PyObject *pass_on(PyObject *self, PyObject *count)
{
    struct epoll_event event;
    char byte = 'x';
    int failed = write(writes[places_count - 1], &byte, 1) != 1;
    for (long left = PyLong_AsLong(count); left > 0 && !failed; left--) {
        failed = epoll_wait(epoll, &event, 1, -1) != 1 || read(reads[event.data.u32], &byte, 1) != 1;
        if (!failed && left > 1)
            failed = write(writes[event.data.u32], &byte, 1) != 1;
    }
    return failed ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
}

/* take_all(): each place's byte is read, once it is there. */
static PyObject *take_all(PyObject *self, PyObject *unused)
{
    struct epoll_event events[1024];
    char byte;
    int failed = 0;
    for (int left = places_count; left > 0 && !failed;) {
        int ready = epoll_wait(epoll, events, 1024, -1);
        failed = ready < 0;
        for (int i = 0; i < ready && !failed; i++)
            failed = read(reads[events[i].data.u32], &byte, 1) != 1;
        left -= ready;
    }
    return failed ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
}

/* write_all(places): a byte for each. */
static PyObject *write_all(PyObject *self, PyObject *places)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(places); i++)
        if (write(PyLong_AsLong(PyTuple_GET_ITEM(PyTuple_GET_ITEM(places, i), 1)), "x", 1) != 1)
            return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *close_epoll(PyObject *self, PyObject *unused)
{
    close(epoll);
    free(reads);
    free(writes);
    Py_RETURN_NONE;
}

/* ----------------------------------------------------------------------------------------------------- fds, by libuv */

/* A uv_poll_t whose callback takes the GIL and calls a Python function: what no loop on libuv can do without. */
typedef struct {
    PyObject *callback, *arguments;
    char handle[];
} Poll;

static Poll **polls;
static Py_ssize_t polls_count;

static void on_ready(void *handle, int status, int events)
{
    Poll *poll = (Poll *)((char *)handle - offsetof(Poll, handle));
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *result = PyObject_Vectorcall(
        poll->callback, &PyTuple_GET_ITEM(poll->arguments, 0), PyTuple_GET_SIZE(poll->arguments), NULL);
    if (result == NULL)
        PyErr_WriteUnraisable(poll->callback);
    Py_XDECREF(result);
    PyGILState_Release(state);
}

static void on_closed(void *handle)
{
    free((char *)handle - offsetof(Poll, handle));
}

/* open_polls(reads, arguments, callback): callback(*arguments[i]) when the fd reads[i] is ready. */
static PyObject *open_polls(PyObject *self, PyObject *args)
{
    PyObject *reads, *arguments, *callback;
    if (!PyArg_ParseTuple(args, "O!O!O", &PyTuple_Type, &reads, &PyTuple_Type, &arguments, &callback))
        return NULL;
    polls_count = PyTuple_GET_SIZE(reads);
    polls = calloc(polls_count, sizeof *polls);
    for (Py_ssize_t i = 0; i < polls_count; i++) {
        polls[i] = calloc(1, sizeof(Poll) + uv.handle_size(UV_POLL));
        polls[i]->callback = Py_NewRef(callback);
        polls[i]->arguments = Py_NewRef(PyTuple_GET_ITEM(arguments, i));
        uv.poll_init(loop, polls[i]->handle, PyLong_AsLong(PyTuple_GET_ITEM(reads, i)));
        uv.poll_start(polls[i]->handle, UV_READABLE, on_ready);
    }
    Py_RETURN_NONE;
}

static PyObject *run(PyObject *self, PyObject *unused)
{
    Py_BEGIN_ALLOW_THREADS
    uv.run(loop, UV_RUN_DEFAULT);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *stop(PyObject *self, PyObject *unused)
{
    uv.stop(loop);
    Py_RETURN_NONE;
}

static PyObject *close_polls(PyObject *self, PyObject *unused)
{
    for (Py_ssize_t i = 0; i < polls_count; i++) {
        Py_DECREF(polls[i]->callback);
        Py_DECREF(polls[i]->arguments);
        uv.close(polls[i]->handle, on_closed);
    }
    free(polls);
    return run(self, unused);
}

static PyMethodDef functions[] = {
    {"open_library", open_library, METH_O, NULL},
    {"open_timers", open_timers, METH_O, NULL},
    {"start_and_fire", start_and_fire, METH_NOARGS, NULL},
    {"fire_and_call", fire_and_call, METH_VARARGS, NULL},
    {"start_and_stop", start_and_stop, METH_NOARGS, NULL},
    {"start_and_stop_in_turn", start_and_stop_in_turn, METH_NOARGS, NULL},
    {"reset", reset, METH_NOARGS, NULL},
    {"open_epoll", open_epoll, METH_O, NULL},
    {"pass_on", pass_on, METH_O, NULL},
    {"take_all", take_all, METH_NOARGS, NULL},
    {"write_all", write_all, METH_O, NULL},
    {"close_epoll", close_epoll, METH_NOARGS, NULL},
    {"open_polls", open_polls, METH_VARARGS, NULL},
    {"run", run, METH_NOARGS, NULL},
    {"stop", stop, METH_NOARGS, NULL},
    {"close_polls", close_polls, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_floor_loop", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__floor_loop(void)
{
    return PyModule_Create(&module);
}
