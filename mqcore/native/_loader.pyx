"""Opens the shared objects of native plugins, and finds the functions in them."""

import os

from ..loop._dl cimport Dl_info, dladdr
from ._diagnostics cimport know_library
from ._arguments cimport OF_ADDRESS, OF_CONNECTION, OF_DATA, OF_LOGIN, OF_MESSAGE
from ._library cimport Library, open_object
from ._native_context cimport new_hook, new_lifecycle_function

from ._abi import make_global
from ..hooks import LIFECYCLE

cdef dict SIGNATURES = {
    "mq_smtp_in_connect": OF_CONNECTION,
    "mq_smtp_in_secure": OF_CONNECTION,
    "mq_smtp_in_close": OF_CONNECTION,
    "mq_smtp_in_authenticate": OF_LOGIN,
    "mq_smtp_in_mailfrom": OF_ADDRESS,
    "mq_smtp_in_rcptto": OF_ADDRESS,
    "mq_smtp_in_data": OF_DATA,
}


def open_library(str path not None, str plugin not None, hooks, bint may_close):
    """The functions of the plugin in the shared object at `path`, by name: a dict of callables.

    `hooks`: names of hooks. `may_close`: the object leaves memory when nothing refers to these functions any more. Raises
    OSError with what the dynamic linker says. The constructors of the object are run, and nothing else.
    """
    cdef Library library
    cdef void *address
    make_global()
    library = open_object(path, may_close)
    functions = {}
    for each in LIFECYCLE:
        address = library.find(each)
        if address != NULL:
            know_library(address, plugin)
        if address != NULL or each.startswith("mq_context_"):  # a context needs a handle, whatever the plugin has
            functions[each] = new_lifecycle_function(each, address, library)
    for each in hooks:
        address = library.find(each)
        if address != NULL and (each.startswith("mq_") or is_in(address, path)):
            know_library(address, plugin)
            functions[each] = new_hook(address, SIGNATURES.get(each, OF_MESSAGE), library)
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
