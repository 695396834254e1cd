# The contexts of native plugins, their timers, and the functions of a plugin's life.

cdef object new_life(str name, void *address)
cdef object new_hook(void *address, int kind)
