"""One connection of a mail server that asks a milter: what it sends becomes events, and answers become packets.

Version 6 of the protocol, as libmilter's `mfdef.h` and Postfix's `milter8.c` have it. It is written down nowhere else.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from ._fields cimport insertions, split_field, write_head
from ._macros cimport FIRST_OF_MESSAGE, Macros, decoded, text_of, texts_of
from ._wire cimport length_at, put_number, until_nul

from . import packets
from .answers import address_of, encode, reply
from .events import Abort, Connect, Goodbye, Helo, MailFrom, Message, RcptTo
from .packets import MilterError, packet

cdef enum:
    VERSION = 6
    ACTIONS = 0x1FF             # all there are: fields and recipients, the sender and the body, quarantine
    ADD_FIELDS = 0x1
    FIELD_OVERHEAD = 128        # octets that a field takes in memory beside its own
    KEPT = 1 << 16              # octets for fields that a connection keeps from one message to the next
    # What need not be sent.
    NO_BODY = 0x10
    NO_FIELDS = 0x20
    NO_END_OF_HEADER = 0x40
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    # What gets no reply, so that the server does not wait for one.
    REPLY_FIELD = 0x80
    REPLY_CONNECT = 0x1000
    REPLY_HELO = 0x2000
    REPLY_SENDER = 0x4000
    REPLY_RECIPIENT = 0x8000
    REPLY_DATA = 0x10000
    REPLY_UNKNOWN = 0x20000
    REPLY_END_OF_HEADER = 0x40000
    REPLY_BODY = 0x80000
    LEADING_SPACE = 0x100000    # fields are sent with the blank behind the colon, byte for byte
    ALWAYS = (LEADING_SPACE | NO_UNKNOWN | REPLY_FIELD | REPLY_END_OF_HEADER | REPLY_BODY | REPLY_DATA | REPLY_UNKNOWN)
    CONTENT = (NO_BODY | NO_FIELDS | NO_END_OF_HEADER | NO_DATA)

MAX_MESSAGE = 256 << 20

cdef Py_ssize_t LARGEST = packets.LARGEST
cdef bytes CONTINUE = packet(b"c")
cdef bytes DISCARD = packet(b"d")
cdef bytes PROGRESS = packet(b"p")
cdef tuple TOO_BIG = (552, "5.3.4 this message is bigger than this filter takes")


@cython.final
cdef class Content:
    """A message as it came. Its fields are read again when somebody asks for them."""

    cdef list fields(self):
        """Names and values, as events have them."""
        cdef const char *data = PyBytes_AS_STRING(self.packets)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.packets)
        cdef Py_ssize_t at = 0
        cdef uint32_t length
        cdef Py_ssize_t name, value
        cdef list fields = []
        while at < size:
            memcpy(&length, data + at, 4)
            at += 4
            assert at + length <= size
            value = split_field(data + at, length, &name)
            fields.append((data[at : at + name], data[at + name + 1 : at + name + 1 + value] if value else b""))
            at += length
        return fields

    cdef object message(self):
        """The event."""
        return tuple.__new__(Message, (self.fields(), self.mime[self.head :], self.mime))


@cython.final
cdef class MilterProtocol:
    """Feed it by `receive`, take events by `next_event` and bytes to send by `take_output`.

    Where `due` is True an answer is: `proceed`, `refuse`, `discard`, or for a Message also `finish`. Until one was given there
    is no next event, but for an Abort or a Goodbye, which make it void. Errors are MilterErrors; then the connection is to be
    closed.

    `wanted`: what this server will ask about. Fixed once it began, as it is agreed upon then. `is_postfix`: whether that is who
    asks, as its macro `v` says; Sendmail does not say what it is, unless it is told to. `is_ended`: whether the server said
    that it is done with this connection.
    """

    def __cinit__(self, wanted not None, Py_ssize_t max_message=MAX_MESSAGE):
        self.wanted = wanted
        self.wants_connect = wanted.connect
        self.wants_secure = wanted.secure
        self.wants_sender = wanted.sender
        self.wants_recipient = wanted.recipient
        self.max_message = max_message
        self.actions = ACTIONS
        self.data = b""
        self.more = []
        self.output = []
        self.said = Macros.__new__(Macros)
        self.chunks = []

    def __dealloc__(self):
        free(self.head)

    # What the server says

    cpdef int receive(self, bytes data) except -1:
        """Add what the server sent."""
        if data is None:
            raise TypeError("receive() needs bytes")
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if size < self.missing:
            self.more.append(data)
            self.more_size += size
            self.missing -= size
            return 0
        cdef bytes rest = self.data[self.at :] if self.at < PyBytes_GET_SIZE(self.data) else b""
        if self.more:
            rest += b"".join(self.more)
            self.more.clear()
            self.more_size = 0
        self.data = rest + data if rest else data
        self.at = self.missing = 0
        return 0

    cdef Py_ssize_t waiting(self) noexcept:
        return PyBytes_GET_SIZE(self.data) - self.at + self.more_size

    @property
    def buffered(self):
        """Octets that wait until an answer was given."""
        return self.waiting()

    @property
    def macros(self):
        """What the server says beside, by names without braces, as of the last event."""
        return self.said.all()

    def macro(self, bytes name not None):
        """One of them."""
        return self.said.find(name)

    def next_event(self):
        """The next one, if all of it has come. While an answer is due it can only be that nobody waits for that any more."""
        cdef Kind kind = self.next_kind()
        if kind == CONNECT:
            return Connect(self.text, self.port, self.client)
        if kind == HELO:
            return Helo(self.text, self.tls_began)
        if kind == MAIL_FROM:
            return MailFrom(self.text, self.parameters or [])
        if kind == RCPT_TO:
            return RcptTo(self.text, self.raw, self.parameters or [])
        if kind == MESSAGE:
            return self.content.message()
        if kind == ABORT:
            return Abort()
        return None if kind == NONE else Goodbye(self.goes_on)

    cdef Kind next_kind(self) except? NONE:
        """`next_event`, for callers that look at what it tells where that is kept. NONE: there is no event."""
        cdef const char *data
        cdef Py_ssize_t left, length
        cdef char command
        cdef Kind kind
        while not self.is_ended:
            data = PyBytes_AS_STRING(self.data) + self.at
            left = PyBytes_GET_SIZE(self.data) - self.at
            if left < 4 or self.due and not (left >= 5 and gives_up(data[4])):
                return NONE
            length = length_at(data)
            if not 1 <= length <= LARGEST:
                raise MilterError(f"a packet of {length} octets, where 1 to {LARGEST} can be")
            if left < 4 + length:
                if not self.missing:
                    self.missing = 4 + length - left
                return NONE
            self.at += 4 + length
            command = data[4]
            if command == c"L" and self.in_transaction:
                self.field(data + 5, length - 1)
            elif command == c"D" and self.is_negotiated:
                self.said.define(data + 5, length - 1)
            else:
                kind = self.take(command, data + 5, length - 1)
                if kind != NONE:
                    self.last = kind
                    return kind
        return NONE

    cdef Kind take(self, char command, const char *data, Py_ssize_t size) except? NONE:
        """What one packet means; NONE where it is no event. The data must not be used after anything else was received."""
        if not self.is_negotiated and command != c"O":
            raise MilterError(f"the command {(<bytes>(&command)[:1])!r} comes before the versions were agreed upon")
        if command == c"M":
            return self.mail(data, size)
        if command == c"R":
            return self.rcpt(data, size)
        if command == c"B":
            self.chunk(data, size)
            return NONE
        if command == c"E":
            return self.end(data, size)
        if command == c"T" or command == c"N" or command == c"U":
            return NONE
        if command == c"A":
            self.due = False
            self.forget()
            return ABORT
        return self.take_other(command, data, size)

    cdef Kind take_other(self, char command, const char *data, Py_ssize_t size) except? NONE:
        if command == c"O":
            self.negotiate(data, size)
            return NONE
        if command == c"C":
            return self.connect(data, size)
        if command == c"H":
            return self.helo(data, size)
        if command == c"L":
            self.field(data, size)
            return NONE
        if command == c"Q" or command == c"K":
            self.due = False
            self.forget()
            self.goes_on = command == c"K"
            if self.goes_on:
                self.said.forget(0)
            else:
                self.is_ended = True
            return GOODBYE
        raise MilterError(f"the command {(<bytes>(&command)[:1])!r} is unknown")

    cdef int negotiate(self, const char *data, Py_ssize_t size) except -1:
        if self.is_negotiated or size < 12:
            raise MilterError("the versions are agreed upon once, in 12 octets")
        cdef Py_ssize_t version = length_at(data)
        cdef uint32_t actions = <uint32_t>length_at(data + 4)
        cdef uint32_t steps = <uint32_t>length_at(data + 8)
        cdef uint32_t needed = self.steps()
        if version < VERSION:
            raise MilterError(f"the server speaks version {version} of the milter protocol, and {<int>VERSION} is needed")
        if needed & ~steps:
            raise MilterError(f"the server does not offer all of what is needed: steps {needed & ~steps:#x} are missing")
        self.is_negotiated = True
        self.actions = actions & ACTIONS
        cdef char answer[17]
        put_number(answer, 13)
        answer[4] = c"O"
        put_number(answer + 5, VERSION)
        put_number(answer + 9, self.actions)
        put_number(answer + 13, needed)
        self.output.append(PyBytes_FromStringAndSize(answer, 17))
        return 0

    cdef int steps(self) except -1:
        cdef int steps = ALWAYS
        if not self.wants_connect:
            steps |= REPLY_CONNECT
        if not self.wants_secure:
            steps |= REPLY_HELO
        if not self.wants_sender:
            steps |= REPLY_SENDER
        if not self.wants_recipient:
            steps |= REPLY_RECIPIENT
        if not self.wanted.content:
            steps |= CONTENT
        return steps

    cdef Kind connect(self, const char *data, Py_ssize_t size) except? NONE:
        cdef Py_ssize_t name = until_nul(data, size)
        cdef const char *rest = data + name + 1     # the family, two octets for the port, the address
        cdef Py_ssize_t left = size - name - 1
        cdef char family = rest[0] if left > 0 else 0
        cdef bint is_network = family == c"4" or family == c"6"
        if not (is_network or family == c"L" or family == c"U") or family != c"U" and left < 3:
            raise MilterError("what it says of its client makes no sense")
        self.tls = None
        self.due = self.wants_connect
        self.text, self.port = "", 0
        if is_network:
            self.text = decoded(rest + 3, until_nul(rest + 3, left - 3)).removeprefix("IPv6:")
            self.port = <unsigned char>rest[1] << 8 | <unsigned char>rest[2]
        self.client = "" if name and data[0] == c"[" or data[:name] == b"unknown" else decoded(data, name)
        return CONNECT

    cdef Kind helo(self, const char *data, Py_ssize_t size) except? NONE:
        version = self.said.find(b"tls_version") or None
        self.tls_began = version is not None and version != self.tls
        self.tls = version
        self.due = self.wants_secure
        self.text = decoded(data, until_nul(data, size))
        return HELO

    cdef Kind mail(self, const char *data, Py_ssize_t size) except? NONE:
        self.forget_content()
        self.said.begin_message()
        self.in_transaction = True
        self.due = self.wants_sender
        self.text = address_in(data, until_nul(data, size))
        self.parameters = parameters_in(data, size)
        return MAIL_FROM

    cdef Kind rcpt(self, const char *data, Py_ssize_t size) except? NONE:
        if not self.in_transaction:
            raise MilterError("a recipient comes outside of a transaction")
        self.due = self.wants_recipient
        cdef Py_ssize_t end = until_nul(data, size)
        self.text = address_in(data, end)
        self.raw = data[:end]
        self.parameters = parameters_in(data, size)
        return RCPT_TO

    cdef int field(self, const char *data, Py_ssize_t size) except -1:
        if not self.has_room(size + FIELD_OVERHEAD):
            return 0
        cdef Py_ssize_t needed = self.head_size + 4 + size
        cdef Py_ssize_t room
        cdef char *larger
        cdef uint32_t length = <uint32_t>size
        if needed > self.head_room:
            room = max(2 * self.head_room, needed, 2048)
            larger = <char *>realloc(self.head, room)
            if larger == NULL:
                raise MemoryError()
            self.head = larger
            self.head_room = room
        memcpy(self.head + self.head_size, &length, 4)
        memcpy(self.head + self.head_size + 4, data, size)
        self.head_size = needed
        return 0

    cdef int chunk(self, const char *data, Py_ssize_t size) except -1:
        if self.has_room(size):
            self.keep_chunk()
            self.chunk_data = self.data
            self.chunk_at = data - PyBytes_AS_STRING(self.data)
            self.chunk_size = size
        return 0

    cdef int keep_chunk(self) except -1:
        """The last one is copied when another one comes: mostly it is the only one."""
        if self.chunk_data is not None:
            self.chunks.append(self.chunk_data[self.chunk_at : self.chunk_at + self.chunk_size])
            self.chunk_data = None
        return 0

    cdef bint has_room(self, Py_ssize_t size) except -1:
        if not self.in_transaction:
            raise MilterError("a message comes outside of a transaction")
        self.size += size
        if self.size > self.max_message:
            self.drop_content()
            return False
        return True

    cdef Kind end(self, const char *data, Py_ssize_t size) except? NONE:
        if not self.in_transaction:
            raise MilterError("a message ends outside of a transaction")
        if size:
            self.chunk(data, size)
        self.due = True
        if self.size > self.max_message:
            self.refuse(TOO_BIG[0], TOO_BIG[1])
            self.forget_content()
            return NONE
        self.content = self.make_content()
        return MESSAGE

    cdef Content make_content(self):
        """The whole mail, with the line ends of SMTP."""
        cdef Content content = Content.__new__(Content)
        cdef Py_ssize_t size = write_head(self.head, self.head_size, NULL)
        content.head = size
        for chunk in self.chunks:
            size += PyBytes_GET_SIZE(<bytes>chunk)
        if self.chunk_data is not None:
            size += self.chunk_size
        content.packets = PyBytes_FromStringAndSize(self.head, self.head_size)
        content.mime = PyBytes_FromStringAndSize(NULL, size)
        cdef char *to = PyBytes_AS_STRING(content.mime)
        to += write_head(self.head, self.head_size, to)
        for chunk in self.chunks:
            memcpy(to, PyBytes_AS_STRING(<bytes>chunk), PyBytes_GET_SIZE(<bytes>chunk))
            to += PyBytes_GET_SIZE(<bytes>chunk)
        if self.chunk_data is not None:
            memcpy(to, PyBytes_AS_STRING(self.chunk_data) + self.chunk_at, self.chunk_size)
            to += self.chunk_size
        assert to == PyBytes_AS_STRING(content.mime) + size
        self.drop_content()
        return content

    cdef int forget(self) except -1:
        """The next transaction, if there is one, has nothing to do with this one."""
        self.forget_content()
        return self.said.forget(FIRST_OF_MESSAGE)

    cdef int forget_content(self) except -1:
        self.in_transaction = False
        self.size = 0
        self.content = None
        return self.drop_content()

    cdef int drop_content(self) except -1:
        self.chunks.clear()
        self.chunk_data = None
        self.head_size = 0
        if self.head_room > KEPT:
            free(self.head)
            self.head = NULL
            self.head_room = 0
        return 0

    @property
    def _body(self):
        self.keep_chunk()
        return self.chunks

    @property
    def _size(self):
        return self.size

    # What is answered

    cpdef bytes take_output(self):
        """What to send to the server, in order."""
        cdef bytes output
        if not self.output:
            return b""
        output = self.output[0] if len(self.output) == 1 else b"".join(self.output)
        self.output.clear()
        return output

    cpdef int proceed(self) except -1:
        """The server may go on. After a Message: it takes it as it is."""
        return self.answer(CONTINUE)

    cpdef int refuse(self, int code, str text) except -1:
        """What the server tells its client. `code` is 4xx or 5xx; the enhanced code (RFC 3463) gets its class, or is
        added."""
        return self.answer(reply(code, text))

    cpdef int discard(self) except -1:
        """The server says that it took the message, and drops it. Not for Connect and Helo."""
        return self.answer(DISCARD)

    def encode(self, message not None, changes not None):
        """What `finish` takes. Raises ValueError if the header of the new mail is none, or the server did not offer to do
        that."""
        return encode(message, changes, self.actions, is_postfix=self.said.is_postfix)

    cdef bytes answer_with(self, Content content, bytes top):
        """The whole answer to a message where this is put on top and nothing else is changed, as most filters do; `top` may be
        None. None: that is not as simple as this, and `encode` knows what to do."""
        if top is None:
            return CONTINUE
        return insertions(content.packets, top, CONTINUE) if self.actions & ADD_FIELDS else None

    cpdef int finish(self, bytes changes) except -1:
        """The server takes the message with these changes, which `encode` made."""
        if changes is None:
            raise TypeError("finish() needs bytes")
        return self.answer(changes + CONTINUE)

    @property
    def is_postfix(self):
        return self.said.is_postfix

    @property
    def takes_progress(self):
        """Whether the server may be told so while an answer is due: Sendmail takes that for an error unless all of a message
        has come."""
        return self.said.is_postfix or self.last == MESSAGE

    def progress(self):
        """An answer will come."""
        if not self.due or not self.takes_progress:
            raise RuntimeError("nobody waits who would understand that")
        self.output.append(PROGRESS)

    cdef int answer(self, bytes data) except -1:
        if not self.due:
            raise RuntimeError("no answer is due")
        self.due = False
        self.output.append(data)
        if self.last == MESSAGE:
            self.last = NONE
            self.forget_content()
        return 0


# What stands in packets

cdef inline bint gives_up(char command) noexcept:
    """Whether it need not wait for an answer."""
    return command == c"A" or command == c"Q" or command == c"K"


cdef list parameters_in(const char *data, Py_ssize_t size):
    """What stands behind the first text; None: there is nothing."""
    cdef Py_ssize_t first = until_nul(data, size)
    if first + 1 >= size:
        return None
    return [text_of(one) for one in texts_of(data[first + 1 : size])]


cdef str address_in(const char *data, Py_ssize_t size):
    if size > 2 and data[0] == c"<" and data[1] != c"@" and data[size - 1] == c">":
        return decoded(data + 1, size - 2)
    return address_of(data[:size])
