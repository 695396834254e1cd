# cython: language_level=3
"""Hooks of a plugin in Cython that does nothing: called as Python functions are, and as C functions."""

from mqcore cimport Context, Message, c_hook


def as_def(Context context, Message message):
    return False


cdef object passes_on(Context context, Message message):
    return False


as_c = c_hook(passes_on, Message)
