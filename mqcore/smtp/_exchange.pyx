"""One mail on a connection to a server that takes commands in groups (RFC 2920), as long as its replies are the usual ones."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_GET_LENGTH
from libc.string cimport memchr, memcmp

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object)
    const unsigned char *PyUnicode_1BYTE_DATA(object)

cdef enum:
    MAX_LINE = 1000     # octets; nobody says more


@cython.final
cdef class Exchange:
    """The replies from MAIL to the last one to the message: of one connection, for one mail to so many recipients.

    UNUSUAL is whatever is not that the server takes all of it, in replies of one line in ASCII. Then a `ClientProtocol` is to
    be asked, which knows all that there is: it hears again what was `said`.
    """

    def __cinit__(self, Py_ssize_t recipients, bint lmtp):
        self.said = b""
        self.replies = []
        self.commands = recipients + 2
        self.messages = recipients if lmtp else 1

    cdef Next receive(self, bytes data) except *:
        """What is to be done when the server has said this. After SEND, that is to be done before it is asked again."""
        cdef const char *text
        cdef const char *end
        cdef Py_ssize_t size
        self.said = data if self.at == 0 and not self.said else self.said + data
        text = PyBytes_AS_STRING(self.said)
        size = PyBytes_GET_SIZE(self.said)
        while self.at < size:
            end = <const char *>memchr(text + self.at, c"\n", size - self.at)
            if (size if end == NULL else end - text) - self.at > MAX_LINE:
                return UNUSUAL
            if end == NULL:
                return WAIT
            if not self.take(text + self.at, end - (text + self.at)):
                return UNUSUAL
            self.at = end + 1 - text
            if self.messages == 0:
                return OVER if self.at == size else UNUSUAL  # it says more than it was asked
            if self.commands == 0 and self.before == 0:
                if self.at < size:
                    return UNUSUAL
                self.before = size
                return SEND
        return WAIT

    cdef bint take(self, const char *line, Py_ssize_t size) except -1:
        """Whether this reply is the usual one."""
        while size and line[size - 1] == c"\r":
            size -= 1
        if size < 3 or size > 3 and line[3] != c" " or not (is_digit(line[1]) and is_digit(line[2])):
            return False
        if self.commands == 1:  # to DATA
            self.commands = 0
            return memcmp(line, "354", 3) == 0
        if line[0] != c"2":
            return False
        if self.commands:
            self.commands -= 1
            return True
        if not is_clean(line + 4, size - 4):
            return False
        text = "" if size < 5 else PyUnicode_DecodeASCII(line + 4, size - 4, NULL)
        self.replies.append((200 + 10 * (line[1] - c"0") + line[2] - c"0", text))
        self.messages -= 1
        return True


cdef inline bint is_digit(char character) noexcept:
    return c"0" <= character <= c"9"


cdef bint is_clean(const char *text, Py_ssize_t size) noexcept:
    """Whether it is words of ASCII with one blank between them."""
    cdef Py_ssize_t index
    cdef bint was_blank = True
    if size <= 0:
        return True
    for index in range(size):
        if text[index] == c" ":
            if was_blank:
                return False
            was_blank = True
        elif c"!" <= text[index] <= c"~":
            was_blank = False
        else:
            return False
    return not was_blank


cdef bytes write_commands(str sender, list recipients, str parameters):
    """Those of a mail in one group, with `parameters` of MAIL. All addresses are plain."""
    if len(recipients) == 1:
        return f"MAIL FROM:<{sender}>{parameters}\r\nRCPT TO:<{<str>recipients[0]}>\r\nDATA\r\n".encode("ascii")
    to = "".join([f"RCPT TO:<{<str>recipient}>\r\n" for recipient in recipients])
    return f"MAIL FROM:<{sender}>{parameters}\r\n{to}DATA\r\n".encode("ascii")


cdef bint is_plain(str address) noexcept:
    """Whether it is ASCII that can stand between angle brackets as it is; see `syntax.is_safe` for what else can."""
    cdef const unsigned char *text
    cdef Py_ssize_t index
    if not PyUnicode_IS_ASCII(address):
        return False
    text = PyUnicode_1BYTE_DATA(address)
    for index in range(PyUnicode_GET_LENGTH(address)):
        if not c"!" <= text[index] <= c"~" or text[index] in (c"<", c">", c'"', c"\\"):
            return False
    return True
