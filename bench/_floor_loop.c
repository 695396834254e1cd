/* The floors under timers and fds: libuv's own calls, and epoll with read and write, from C and with no Python in between.
 *
 * open_timers(path, count) takes the libuv inside the module at `path` (uvloop's) and makes timers on a loop of its own; the
 * functions after it use them. ring(places, rounds) passes a byte round a ring of sockets.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { UV_TIMER = 13, UV_RUN_DEFAULT = 0 };

static struct {
    size_t (*loop_size)(void);
    int (*loop_init)(void *);
    int (*run)(void *, int);
    size_t (*handle_size)(int);
    int (*timer_init)(void *, void *);
    int (*timer_start)(void *, void (*)(void *), uint64_t, uint64_t);
    int (*timer_stop)(void *);
} uv;

static void *loop;
static char *timers;
static size_t size, count, fired;

static void on_timer(void *timer)
{
    fired++;
}

static PyObject *open_timers(PyObject *self, PyObject *args)
{
    const char *path;
    Py_ssize_t wanted;
    if (!PyArg_ParseTuple(args, "sn", &path, &wanted))
        return NULL;
    void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (library == NULL)
        return PyErr_Format(PyExc_OSError, "%s", dlerror());
    *(void **)&uv.loop_size = dlsym(library, "uv_loop_size");
    *(void **)&uv.loop_init = dlsym(library, "uv_loop_init");
    *(void **)&uv.run = dlsym(library, "uv_run");
    *(void **)&uv.handle_size = dlsym(library, "uv_handle_size");
    *(void **)&uv.timer_init = dlsym(library, "uv_timer_init");
    *(void **)&uv.timer_start = dlsym(library, "uv_timer_start");
    *(void **)&uv.timer_stop = dlsym(library, "uv_timer_stop");
    loop = calloc(1, uv.loop_size());
    size = uv.handle_size(UV_TIMER);
    count = wanted;
    timers = calloc(count, size); /* kept for as long as the process lives */
    uv.loop_init(loop);
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
static PyObject *ring(PyObject *self, PyObject *args)
{
    PyObject *pairs;
    Py_ssize_t rounds;
    struct epoll_event event = {.events = EPOLLIN};
    char byte = 'x';
    if (!PyArg_ParseTuple(args, "O!n", &PyTuple_Type, &pairs, &rounds))
        return NULL;
    Py_ssize_t places = PyTuple_GET_SIZE(pairs);
    int reads[places], writes[places];
    int epoll = epoll_create1(0);
    for (Py_ssize_t i = 0; i < places; i++) {
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(pairs, i), "ii", &reads[i], &writes[i]))
            return NULL;
        event.data.u32 = i;
        epoll_ctl(epoll, EPOLL_CTL_ADD, reads[i], &event);
    }
    int failed = write(writes[places - 1], &byte, 1) != 1;
    while (!failed && rounds-- > 0) {
        failed = epoll_wait(epoll, &event, 1, -1) != 1 || read(reads[event.data.u32], &byte, 1) != 1;
        if (!failed && rounds > 0)
            failed = write(writes[event.data.u32], &byte, 1) != 1;
    }
    close(epoll);
    return failed ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"open_timers", open_timers, METH_VARARGS, NULL},
    {"start_and_fire", start_and_fire, METH_NOARGS, NULL},
    {"start_and_stop", start_and_stop, METH_NOARGS, NULL},
    {"start_and_stop_in_turn", start_and_stop_in_turn, METH_NOARGS, NULL},
    {"reset", reset, METH_NOARGS, NULL},
    {"ring", ring, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_floor_loop", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__floor_loop(void)
{
    return PyModule_Create(&module);
}
