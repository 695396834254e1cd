"""The `Received` line that a mail gets which comes in (RFC 5321, 4.4)."""

import re
import time
from hashlib import blake2b

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport floor
from libc.string cimport memcpy
from ...smtp._protocol cimport ServerProtocol

from ...smtp.syntax import is_safe
from ..mbox import format as mbox

cdef enum:
    EXTENDED = 1
    SECURE = 2
    AUTHENTICATED = 4
    UTF8 = 8
    LONGEST_HELO = 255
    LONGEST_ADDRESS = 254

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(str text) noexcept
    const unsigned char *PyUnicode_1BYTE_DATA(str text) noexcept

cdef bint PLAIN[256]
cdef int code
for code in range(256):
    PLAIN[code] = code < 128 and (chr(code).isalnum() or chr(code) in ".-_")

cdef object IN_NO_NAME = re.compile(r"[^A-Za-z0-9._:\[\]-]").sub
cdef object IN_NO_ADDRESS = re.compile(r"[<>;]").search  # also where quotes let it be there


@cython.final
cdef class Tracer:
    """Writes the lines of one listener.

    `id` stands in each of them, and in those of no other listener, by its host name and its URL: the same in every process
    and in every run, so that a mail that comes again is known.

    All that a client says is in it as one word each: what could be taken for another part of the line becomes `?`.
    """

    def __cinit__(self, str hostname not None, str url not None):
        self.id = blake2b(f"{hostname} {url}".encode(), digest_size=8).hexdigest()
        self.by = f"\r\n\tby {hostname} (mqcore {self.id})\r\n\twith ".encode()
        self.second = -1.0
        self.last_kind = -1

    cdef bytes begin(self, ServerProtocol protocol, str peer):
        """What is the same for all mails of a connection, as long as `kind_of` and the client's name are."""
        cdef int kind = kind_of(protocol)
        # A server in front of us says the same on each of its connections.
        if kind == self.last_kind and peer == self.last_peer and protocol.helo == self.last_helo:
            return self.last
        self.last_kind, self.last_peer, self.last_helo = kind, peer, protocol.helo
        name = protocol.helo[:LONGEST_HELO]
        if not is_plain(name, 0):
            name = IN_NO_NAME("?", name)
        address = peer.partition("%")[0] if ":" in peer else peer
        where = f" ([IPv6:{address}])" if ":" in address else f" ([{address}])" if address else ""
        spoken = protocol_name(kind, protocol.terms.lmtp)
        self.last = f"Received: from {name}{where}".encode() + self.by + f"{spoken} id ".encode()
        return self.last

    cdef bytes line(self, bytes begin, str id, str recipient, double now):
        """All of it; `recipient` is None where there are several."""
        if not self.second <= now < self.second + 1:
            self.second = floor(now)
            self.end = format_date(time.localtime(self.second))
        cdef Py_ssize_t id_size, to_size = 0
        cdef const char *id_text = PyUnicode_AsUTF8AndSize(id, &id_size)
        cdef const char *to = NULL
        if recipient is not None and can_be_written(recipient):
            to = PyUnicode_AsUTF8AndSize(recipient, &to_size)
        cdef Py_ssize_t size = len(begin) + id_size + (to_size + 9 if to != NULL else 0) + len(self.end)
        cdef bytes line = PyBytes_FromStringAndSize(NULL, size)
        cdef char *at = PyBytes_AS_STRING(line)
        at = append(at, PyBytes_AS_STRING(begin), len(begin))
        at = append(at, id_text, id_size)
        if to != NULL:
            at = append(at, b"\r\n\tfor <", 8)
            at = append(at, to, to_size)
            at = append(at, b">", 1)
        append(at, PyBytes_AS_STRING(self.end), len(self.end))
        return line


cdef inline char *append(char *at, const char *text, Py_ssize_t size) noexcept:
    memcpy(at, text, size)
    return at + size


cdef int kind_of(ServerProtocol protocol) noexcept:
    """All that the name of the protocol depends on."""
    return (EXTENDED * protocol.extended | SECURE * protocol.secure | AUTHENTICATED * protocol.authenticated
            | UTF8 * protocol.utf8)


cdef str protocol_name(int kind, bint lmtp):
    """As RFC 3848 and, for SMTPUTF8, RFC 6531 (4.3) have it. Whoever says HELO speaks the SMTP of old."""
    if not kind & EXTENDED:
        return "SMTP"
    name = "LMTP" if lmtp else "SMTP" if kind & UTF8 else "ESMTP"
    return f"{'UTF8' if kind & UTF8 else ''}{name}{'S' if kind & SECURE else ''}{'A' if kind & AUTHENTICATED else ''}"


cdef bint can_be_written(str address) except -1:
    """Whether it can stand between angle brackets, and nothing in it be taken for anything else."""
    if len(address) > LONGEST_ADDRESS:
        return False  # it would make a long line
    return is_plain(address, c"@") or is_safe(address) and not IN_NO_ADDRESS(address)


cdef bint is_plain(str text, char also) except -1:
    """Whether it is made of what most names are made of, and of this character, so that nothing in it need be looked for."""
    if not PyUnicode_IS_ASCII(text):
        return False
    cdef const unsigned char *characters = PyUnicode_1BYTE_DATA(text)
    cdef Py_ssize_t i
    for i in range(len(text)):
        if not PLAIN[characters[i]] and characters[i] != also:
            return False
    return True


cdef bytes format_date(moment):
    """As RFC 5322 has it, in the machine's own time zone."""
    cdef int minutes = moment.tm_gmtoff // 60
    sign, minutes = ("-", -minutes) if minutes < 0 else ("+", minutes)
    weekday, month = mbox.DAYS[moment.tm_wday].decode(), mbox.MONTHS[moment.tm_mon - 1].decode()
    day = f"{weekday}, {moment.tm_mday:02} {month} {moment.tm_year}"
    clock = f"{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
    return f";\r\n\t{day} {clock} {sign}{minutes // 60:02}{minutes % 60:02}\r\n".encode()
