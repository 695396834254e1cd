"""Lines that a client sends, and what stands in them."""

from cpython.unicode cimport PyUnicode_AsUTF8AndSize

from . import syntax
from .syntax import ReplyError

cdef extern from "Python.h":
    bint Py_ISALNUM(char character) noexcept
    bint PyUnicode_IS_ASCII(object text) noexcept

cdef Py_ssize_t max_address = syntax.MAX_ADDRESS


cdef str decode(const char *text, Py_ssize_t size, bint lenient):
    """A line as text, without its end. Raises ReplyError."""
    cdef Py_ssize_t at = 0
    while c" " <= text[at] <= c"~":
        at += 1
    if at == size - 2 and text[at] == c"\r":
        return text[:at].decode("ascii")  # as nearly all are
    cdef str line
    try:
        line = text[:size].decode(errors="surrogateescape" if lenient else "strict")
    except UnicodeDecodeError:
        raise ReplyError("500 5.5.2 this is not UTF-8") from None  # RFC 5321, 2.4
    if not line.endswith("\r\n"):
        raise ReplyError("500 5.5.2 lines must end in CR LF")
    line = line[: len(line) - 2]
    if lenient:
        line = line.replace("\t", " ")
    if not line.isprintable() and syntax.find_control(line):
        raise ReplyError("500 5.5.2 control characters are not allowed")
    return line


cdef bint may_come_before_tls(const char *line) noexcept:
    """RFC 3207, 4. HELO is for those who then learn why nothing else works."""
    return (says(line, b"EHLO") or says(line, b"LHLO") or says(line, b"HELO") or says(line, b"NOOP")
            or says(line, b"STARTTLS") or says(line, b"QUIT"))


cdef int without_argument(str line) except -1:
    """Raises ReplyError if anything follows the verb."""
    verb, blank, argument = line.partition(" ")
    if blank and argument.strip(" "):
        raise ReplyError(f"501 5.5.4 {verb.upper()} has no arguments")
    return 0


cdef str argument_of(str line):
    """What follows the verb."""
    return line.partition(" ")[2].strip(" ")


cdef str plain_address(str line, const char *begin, Py_ssize_t at):
    """The address between `begin`, which has `at` characters, and a final `>`, if it is as most are; else None."""
    if not PyUnicode_IS_ASCII(line):
        return None
    cdef Py_ssize_t size, i
    cdef const char *text = PyUnicode_AsUTF8AndSize(line, &size)
    cdef char last = c"."
    cdef bint in_domain = False
    size -= 1
    if not at < size <= at + max_address or PyOS_strnicmp(text, begin, at) != 0 or text[size] != c">":
        return None
    for i in range(at, size):
        if text[i] == c"@":
            if in_domain or i == at:
                return None
            in_domain = True
            last = c"."
        elif text[i] == c".":
            if in_domain and last == c".":
                return None
            last = c"."
        elif Py_ISALNUM(text[i]) or text[i] == c"-" or text[i] == c"_" or text[i] == c"+" or text[i] == c"=":
            last = c"x"
        else:
            return None
    return line[at:size] if in_domain and last != c"." else None
