"""What is usual in an mbox, read without a regular expression; whatever else there is, `format` reads."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.string cimport memchr, memcmp
from .._origin cimport new_origin

from . import format

cdef extern from "<string.h>" nogil:
    void *memmem(const void *, size_t, const void *, size_t)

cdef enum:
    DATE = 24       # octets of `Tue Nov 24 05:31:47 2026`

cdef const char *MONTHS = b"JanFebMarAprMayJunJulAugSepOctNovDec"
cdef const char *DAYS = b"MonTueWedThuFriSatSun"
cdef const char *ODD_BEGINS = b"-?x0123456789abcdefmM<"  # of what may be no sender
cdef Py_ssize_t HEAD = format.HEAD
cdef Py_ssize_t LONGEST = format.LONGEST


def find_lf(bytes block not None, Py_ssize_t begin):
    """Where the LF is that is followed by the next mail; -1 if there is none."""
    cdef const char *text = PyBytes_AS_STRING(block)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(block)
    if not 0 <= begin <= size:
        return -1
    cdef const char *found = <const char *>memmem(text + begin, size - begin, b"\nFrom ", 6)
    return -1 if found == NULL else found - text


def find_cr(bytes head not None):
    """`format.find_cr`."""
    if memchr(PyBytes_AS_STRING(head), c"\r", PyBytes_GET_SIZE(head)) == NULL:
        return 0
    return format.find_cr(head)


def split(bytes raw not None, *, bint last):
    """`format.split`."""
    cdef const char *text = PyBytes_AS_STRING(raw)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(raw), begin, end
    cdef const char *newline = <const char *>memchr(text, c"\n", min(size, HEAD))
    if newline == NULL or memchr(text, c"\r", min(size, HEAD)) != NULL:
        return format.split(raw, last=last)
    begin = newline + 1 - text
    if memmem(text + begin, size - begin, b">From ", 6) != NULL:
        return format.split(raw, last=last)
    end = size
    if not last or size > begin and text[size - 1] == text[size - 2] == c"\n":
        end -= 1
    return raw[:begin], PyBytes_FromStringAndSize(text + begin, max(end - begin, 0))


def parse_from_line(bytes line not None):
    """`format.parse_from_line`."""
    cdef const char *text = PyBytes_AS_STRING(line)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(line) - DATE - 2  # as far as the blank before the date
    cdef Py_ssize_t index
    cdef long long received
    if not 5 < size <= LONGEST - DATE - 2 or memcmp(text, b"From ", 5) != 0 or text[size] != c" ":
        return format.parse_from_line(line)
    for index in range(5, size):
        if not c"!" <= text[index] <= c"~":
            return format.parse_from_line(line)
    received = parse_date(text + size + 1)
    if received < 0 or text[size + 1 + DATE] != c"\n" or memchr(ODD_BEGINS, text[5], 22) != NULL:
        return format.parse_from_line(line)
    return PyUnicode_DecodeASCII(text + 5, size - 5, NULL), received


cdef long long parse_date(const char *date) noexcept:
    """Seconds since 1970; -1 if it is no such date, or of before."""
    cdef long long year, month, day
    cdef int index
    if find_name(DAYS, 7, date) < 0 or date[3] != c" " or date[7] != c" " or date[10] != c" " or date[19] != c" ":
        return -1
    if date[13] != c":" or date[16] != c":" or date[20] == c"0":
        return -1
    for index in range(9, DATE):
        if index not in (10, 13, 16, 19) and not c"0" <= date[index] <= c"9":
            return -1
    if date[8] != c" " and not c"0" <= date[8] <= c"9":
        return -1
    month = find_name(MONTHS, 12, date + 4)
    if month < 0:
        return -1
    year = two(date + 20) * 100 + two(date + 22)
    day = date[9] - c"0" if date[8] == c" " else two(date + 8)
    return days_before(year, month) * 86400 + (day - 1) * 86400 + two(date + 11) * 3600 + two(date + 14) * 60 + two(date + 17)


cdef inline int two(const char *digits) noexcept:
    return (digits[0] - c"0") * 10 + digits[1] - c"0"


cdef int find_name(const char *names, int count, const char *name) noexcept:
    """Which of these of three letters it is; -1: none."""
    cdef int index
    for index in range(count):
        if memcmp(names + 3 * index, name, 3) == 0:
            return index
    return -1


cdef long long days_before(long long year, long long month) noexcept:
    """From the beginning of 1970 to that of a month, of which the first is 0. Here a year begins in March, so that the day by
    which some are longer is their last."""
    if month < 2:
        year -= 1
        month += 12
    return year * 365 + year // 4 - year // 100 + year // 400 + (153 * (month - 2) + 2) // 5 - 719468


def origin_of(bytes mime not None, str id not None, Py_ssize_t place, str sender, received, bytes from_line, sort_time):
    """The `Origin` of a mail in an mbox."""
    return new_origin(mime, id, place, sender, received, None, True, False, 0, 0, None, from_line, sort_time)
