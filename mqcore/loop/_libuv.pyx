"""libuv, borrowed from the owner of the loop.

A `uv_loop_t` may only be touched by the libuv that made it, and uvloop and pyuv each bring their own. So mqcore links
none: it opens the owner's extension module, which is loaded already, and asks it for the functions. `dlsym` on a
module's handle also searches the libraries that the module is linked to, which covers distributions whose uvloop links
libuv.so.1.
"""

import asyncio
import sys

cimport cython
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer

from ._dl cimport RTLD_DEFAULT, RTLD_LAZY, RTLD_NOLOAD, Dl_info, dladdr, dlopen, dlsym

from ..errors import MqError

cdef tuple SYMBOLS = (
    "uv_run", "uv_version_string", "uv_handle_size", "uv_hrtime", "uv_now", "uv_close", "uv_walk", "uv_fileno",
    "uv_is_active", "uv_backend_fd",
    "uv_ref", "uv_unref",
    "uv_timer_init", "uv_timer_start", "uv_timer_stop",
    "uv_poll_init", "uv_poll_start", "uv_poll_stop",
    "uv_async_init", "uv_async_send",
    "uv_idle_init", "uv_idle_start", "uv_idle_stop",
    "uv_prepare_init", "uv_prepare_start",
    "uv_check_init", "uv_check_start",
)
assert sizeof(LibUV) == len(SYMBOLS) * sizeof(void *)

cdef dict libraries = {}  # owner -> Library
cdef dict substitutes = {}  # id of a loop -> the Library that stands in for its owner's: see _clock


@cython.final
cdef class Library:

    def __cinit__(self, str owner not None, str path not None):
        self.owner = owner
        self.path = path
        # RTLD_NOLOAD: the owner has loaded it. Never RTLD_GLOBAL: two libuvs in the global scope take each other's calls.
        cdef void *module = dlopen(path.encode(sys.getfilesystemencoding()), RTLD_LAZY | RTLD_NOLOAD)
        if module == NULL:
            raise ImportError(f"mqcore cannot reach the libuv of {owner}: {path} is not loaded as a shared library", path=path)
        cdef void **place = <void **>&self.table
        missing = []
        for index, name in enumerate(SYMBOLS):
            place[index] = dlsym(module, <bytes>name.encode())
            if place[index] == NULL:
                missing.append(name)
        self.version = "unknown" if "uv_version_string" in missing else self.table.version_string().decode()
        if missing:
            raise ImportError(
                f"mqcore cannot use the libuv of {owner}: version {self.version} in {path} does not export "
                f"{', '.join(missing)}", path=path)

    cdef int check_alone(self) except -1:
        """Refuse to run when calls inside the owner would end in another libuv than the one in the table."""
        cdef void *other
        if self.owner == "pyuv":
            # pyuv says which libuv its own calls reach.
            reached = sys.modules["pyuv"].LIBUV_VERSION
            if reached != self.version:
                raise ImportError(
                    f"pyuv ({self.path}) brings libuv {self.version}, but its calls reach libuv {reached}, which was "
                    f"loaded with RTLD_GLOBAL before it; load that one without RTLD_GLOBAL", path=self.path)
            return 0
        other = dlsym(RTLD_DEFAULT, b"uv_run")
        if other != NULL and other != <void *>self.table.run:
            raise ImportError(
                f"{file_of(other)} put its libuv into the global scope, where it takes the calls meant for the libuv of "
                f"{self.owner} ({self.path}); load it without RTLD_GLOBAL", path=self.path)
        return 0


cdef str file_of(void *address):
    cdef Dl_info info
    if dladdr(address, &info) == 0 or info.dli_fname == NULL:
        return "a library"
    return info.dli_fname.decode(sys.getfilesystemencoding(), "surrogateescape")


cdef bint is_pyuv(object loop):
    pyuv = sys.modules.get("pyuv")
    return pyuv is not None and isinstance(loop, pyuv.Loop)


cdef Library library_of(object loop):
    """The libuv that made `loop`, a `uvloop.Loop` or a `pyuv.Loop`.

    Raises TypeError for any other loop, ImportError where the owner's libuv cannot be used.
    """
    import uvloop.loop
    if isinstance(loop, uvloop.loop.Loop):
        owner, path = "uvloop", uvloop.loop.__file__
    elif is_pyuv(loop):
        owner, path = "pyuv", pyuv_file()
    else:
        hint = "; run your code with uvloop.run(main())" if isinstance(loop, asyncio.AbstractEventLoop) else ""
        raise TypeError(
            f"mqcore needs a uvloop.Loop or a pyuv.Loop, not {type(loop).__module__}.{type(loop).__qualname__}{hint}")
    library = libraries.get(owner)
    if library is None:
        library = Library(owner, path)
        libraries[owner] = library
    (<Library>library).check_alone()
    return substitutes.get(id(loop), library)


def substitute(loop, Library library):
    """From now on, what attaches to `loop` gets this Library; None: that of the loop's owner again."""
    if library is None:
        substitutes.pop(id(loop), None)
    else:
        substitutes[id(loop)] = library


cdef str pyuv_file():
    """The file of pyuv's extension module, which is `pyuv` itself or `pyuv._cpyuv`, as it was built."""
    for name in ("pyuv._cpyuv", "_pyuv", "pyuv"):
        path = getattr(sys.modules.get(name), "__file__", None)
        if path is not None and not path.endswith(".py"):
            return path
    raise ImportError("mqcore cannot find the extension module of pyuv")


cdef uv_loop_t *pointer_of(object loop) except NULL:
    """The `uv_loop_t` of a loop that `library_of` accepted. Raises MqError when the loop is closed."""
    if is_pyuv(loop):
        return pointer_of_pyuv(loop)
    if loop.is_closed():
        raise MqError("the loop is closed; a dispatcher needs one that is open")
    import uvloop.loop
    return <uv_loop_t *>PyCapsule_GetPointer(uvloop.loop.libuv_get_loop_t_ptr(loop), NULL)


cdef struct PyuvHandle:
    # What pyuv 1.x puts into a pyuv.Handle after PyObject_HEAD.
    void *magic
    uv_handle_t *handle


cdef uv_loop_t *pointer_of_pyuv(object loop) except NULL:
    """pyuv has no way to ask a loop for its pointer; a handle made on it has one."""
    pyuv = sys.modules["pyuv"]
    handle = pyuv.Prepare(loop)
    try:
        return (<PyuvHandle *>(<char *><PyObject *>handle + sizeof(PyObject))).handle.loop
    finally:
        handle.close()
