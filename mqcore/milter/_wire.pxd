# What packets are made of: numbers, the most significant octet first, and texts with a NUL behind them.

from libc.stdint cimport uint32_t
from libc.string cimport memchr

cdef inline Py_ssize_t length_at(const char *data) noexcept:
    """Four octets, as a number."""
    cdef const unsigned char *octets = <const unsigned char *>data
    return (<Py_ssize_t>octets[0] << 24) | (<Py_ssize_t>octets[1] << 16) | (<Py_ssize_t>octets[2] << 8) | octets[3]


cdef inline void put_number(char *to, uint32_t number) noexcept:
    to[0] = <char>(number >> 24)
    to[1] = <char>(number >> 16 & 0xFF)
    to[2] = <char>(number >> 8 & 0xFF)
    to[3] = <char>(number & 0xFF)


cdef inline Py_ssize_t until_nul(const char *data, Py_ssize_t size) noexcept:
    """Octets before the first NUL."""
    cdef const char *found = <const char *>memchr(data, 0, size)
    return size if found == NULL else found - data
