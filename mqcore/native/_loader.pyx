"""Opens the shared objects of native plugins, and finds the functions in them."""

import os

from ._native_context cimport new_hook, new_life
from ._hooks cimport OF_ADDRESS, OF_CONNECTION, OF_DATA, OF_LOGIN, OF_MESSAGE
from ._diagnostics cimport know_library

from ._abi import make_global
from ..hooks import LIFECYCLE

cdef extern from "dlfcn.h" nogil:
    void *dlopen(const char *, int)
    void *dlsym(void *, const char *)
    const char *dlerror()
    ctypedef struct Dl_info:
        const char *dli_fname
    int dladdr(const void *, Dl_info *)
    int RTLD_LOCAL, RTLD_NOW

cdef dict SIGNATURES = {
    "mq_smtp_in_connect": OF_CONNECTION,
    "mq_smtp_in_secure": OF_CONNECTION,
    "mq_smtp_in_close": OF_CONNECTION,
    "mq_smtp_in_authenticate": OF_LOGIN,
    "mq_smtp_in_mailfrom": OF_ADDRESS,
    "mq_smtp_in_rcptto": OF_ADDRESS,
    "mq_smtp_in_data": OF_DATA,
}


def open_library(str path not None, str plugin not None, hooks):
    """The functions of the plugin in the shared object at `path`, by name: a dict of callables.

    `hooks`: names of hooks. It is never closed again. Raises OSError with what the dynamic linker says. The constructors of
    the object are run, and nothing else.
    """
    cdef bytes file = os.fsencode(path)
    cdef const char *name = file
    cdef void *library
    cdef void *address
    make_global()
    with nogil:
        library = dlopen(name, RTLD_NOW | RTLD_LOCAL)
    if library == NULL:
        raise OSError(os.fsdecode(dlerror()))
    functions = {}
    for each in LIFECYCLE:
        address = dlsym(library, <bytes>each.encode())
        if address != NULL:
            know_library(address, plugin)
        if address != NULL or each.startswith("mq_context_"):  # a context needs a handle, whatever the plugin has
            functions[each] = new_life(each, address)
    for each in hooks:
        address = dlsym(library, <bytes>each.encode())
        if address != NULL and (each.startswith("mq_") or is_in(address, path)):
            know_library(address, plugin)
            functions[each] = new_hook(address, SIGNATURES.get(each, OF_MESSAGE))
    return functions


cdef bint is_in(const void *address, str path) except -1:
    """Whether a function is in that shared object itself.

    dlsym() looks into the libraries that it is linked to as well: for a hook named `close` it would find libc's.
    """
    cdef Dl_info found
    if dladdr(address, &found) == 0 or found.dli_fname == NULL:
        return False
    file = os.fsdecode(found.dli_fname)
    return file == path or (os.path.exists(file) and os.path.samefile(file, path))
