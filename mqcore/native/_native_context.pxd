# The contexts of native plugins, their timers, and the functions of a plugin's life.

from ._library cimport Library

cdef object new_lifecycle_function(str name, void *address, Library library)
cdef object new_hook(void *address, int kind, Library library)
