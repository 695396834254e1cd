"""`Headers`, the view of a mail by which plugins read and edit the fields of its header.

Nothing is parsed beforehand or kept: each call looks for what it needs in the bytes of the mail, from the top. What is edited
is kept beside those bytes, in `Mail.above`, and takes the place of the first `Mail.hidden` of them. So the mails of one message
go on sharing the rest, and a field on top of a big mail costs no more than the field.

An edit allocates bytes and nothing else, so that nobody's code runs between its look at the mail and its change of it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8
from libc.string cimport memchr, memcmp, memcpy
from ..loop._seal cimport seal
from ._mail cimport Mail
from ._spool cimport Spooled


cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(str text) noexcept
    const char *PyUnicode_1BYTE_DATA(str text) noexcept

cdef enum:
    FIRST_READ = 1 << 14    # octets of a mail in a spool in which its header is looked for first
    SHORT = 78              # octets of a line that is not folded

cdef struct Field:
    # Where its parts are.
    Py_ssize_t start        # of the name, and of all of it
    Py_ssize_t name_size
    Py_ssize_t value        # behind the colon
    Py_ssize_t stop         # behind its last line end

cdef struct Name:
    const char *text
    Py_ssize_t size

cdef struct Edit:
    Py_ssize_t count        # of fields that are taken out
    Py_ssize_t size         # of what is above then
    Py_ssize_t hidden       # as in Mail


# --------------------------------------------------------------------------------------------------------------- Reading

cdef bint find_field(const char *text, Py_ssize_t size, Py_ssize_t at, char end, Field *field) noexcept:
    """The field at `at`, in lines that end with `end`. False: there is none, so that is where the header ends."""
    cdef const char *found
    field.start = at
    while at < size and c"!" <= text[at] <= c"~" and text[at] != c":":
        at += 1
    field.name_size = at - field.start
    while at < size and is_blank(text[at]):  # as of old
        at += 1
    if at == size or text[at] != c":" or is_blank(text[field.start]):
        return False
    at += 1
    field.value = at
    while True:
        found = <const char *>memchr(text + at, end, size - at)
        at = size if found == NULL else found - text + 1
        if at == size or not is_blank(text[at]):
            break
    field.stop = at
    return True


cdef inline bint is_blank(char character) noexcept:
    return character == c" " or character == c"\t"


cdef char find_end(const char *text, Py_ssize_t size) noexcept:
    """What lines end with: LF, alone or behind a CR; or CR, as on the old Macintosh, if there is no LF at all."""
    cdef Py_ssize_t at = 0
    while at < size and text[at] != c"\n" and text[at] != c"\r":
        at += 1
    if at == size or text[at] == c"\n" or memchr(text + at, c"\n", size - at) != NULL:
        return c"\n"
    return c"\r"


cdef bint has_all(bytes text, Py_ssize_t at) noexcept:
    """Whether the header that goes on at `at` ends in this part of a mail."""
    cdef const char *start = PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    cdef char end = find_end(start, size)
    cdef Field field
    while find_field(start, size, at, end, &field):
        at = field.stop
    return memchr(start + at, end, size - at) != NULL


cdef inline char lower(char character) noexcept:
    return character + 32 if c"A" <= character <= c"Z" else character


@cython.final
@cython.no_gc       # no collection when one is made
@cython.freelist(4)
cdef class Reader:
    """Goes through the fields of a mail, from the top."""
    cdef bytes above        # as in Mail, and not None
    cdef bytes rest         # of what is beneath, as much as has the header
    cdef Py_ssize_t hidden
    cdef bint in_rest       # where the field is
    cdef const char *text   # of the part where it is
    cdef Py_ssize_t size
    cdef Py_ssize_t at      # where the next one begins
    cdef char end
    cdef Field field

    cdef void begin(self) noexcept:
        """Before the first field. A From_ line of an mbox may be above it, which is none."""
        self.in_rest = PyBytes_GET_SIZE(self.above) == 0
        self.enter(self.rest if self.in_rest else self.above, self.hidden if self.in_rest else 0)
        self.end = find_end(self.text + self.at, self.size - self.at)
        cdef Py_ssize_t left = self.size - self.at
        cdef const char *first = self.text + self.at
        cdef const char *stop
        if (left >= 5 and memcmp(first, b"From ", 5) == 0 or left >= 6 and memcmp(first, b">From ", 6) == 0) \
                and not find_field(self.text, self.size, self.at, self.end, &self.field):
            stop = <const char *>memchr(first, self.end, left)
            self.at = self.size if stop == NULL else stop - self.text + 1

    cdef inline void enter(self, bytes part, Py_ssize_t at) noexcept:
        self.text = PyBytes_AS_STRING(part)
        self.size = PyBytes_GET_SIZE(part)
        self.at = at

    cdef bint next(self) noexcept:
        """The next field, if there is one."""
        if not self.in_rest and self.at == self.size:
            self.in_rest = True
            self.enter(self.rest, self.hidden)
        if not find_field(self.text, self.size, self.at, self.end, &self.field):
            return False
        self.at = self.field.stop
        return True

    cdef bint is_named(self, Name *name) noexcept:
        cdef const char *own = self.text + self.field.start
        cdef Py_ssize_t index
        if self.field.name_size != name.size:
            return False
        for index in range(name.size):
            if lower(own[index]) != lower(name.text[index]):
                return False
        return True

    cdef str name(self):
        return PyUnicode_DecodeUTF8(self.text + self.field.start, self.field.name_size, NULL)

    cdef str value(self):
        """In one line, without the blanks around it."""
        cdef const char *start = self.text + self.field.value
        cdef const char *stop = self.text + self.field.stop
        while start < stop and is_around(start[0]):
            start += 1
        while start < stop and is_around(stop[-1]):
            stop -= 1
        if memchr(start, self.end, stop - start) == NULL:
            return PyUnicode_DecodeUTF8(start, stop - start, "surrogateescape")
        cdef bytes joined = PyBytes_FromStringAndSize(NULL, stop - start)
        cdef char *first = PyBytes_AS_STRING(joined)
        cdef char *to = first
        while start < stop:
            if start[0] != self.end and not (start[0] == c"\r" and start[1] == c"\n"):
                to[0] = start[0]
                to += 1
            start += 1
        return PyUnicode_DecodeUTF8(first, to - first, "surrogateescape")

    cdef bytes line_end(self):
        """That of the first line; CRLF where there is none."""
        cdef const char *found = <const char *>memchr(self.text, self.end, self.size)
        if found == NULL or self.end == c"\n" and found > self.text and found[-1] == c"\r":
            return b"\r\n"
        return b"\n" if self.end == c"\n" else b"\r"

    cdef bint needs_blank_line(self) noexcept:
        """Whether what is here would be taken for a part of a field that comes above it."""
        cdef Field field
        if not self.in_rest and self.at == self.size:
            self.in_rest = True
            self.enter(self.rest, self.hidden)
        return (self.at < self.size and self.text[self.at] != c"\n" and self.text[self.at] != c"\r"
                and not find_field(self.text, self.size, self.at, self.end, &field))


cdef inline bint is_around(char character) noexcept:
    return is_blank(character) or character == c"\r" or character == c"\n"


cdef Reader new_reader(Mail mail):
    cdef Reader reader = Reader.__new__(Reader)
    cdef Spooled spooled
    while True:
        spooled = mail.spooled
        if spooled is None:
            reader.rest = b"" if mail.content is None else mail.content
            break
        reader.rest = beginning_of(spooled, mail.hidden)
        if mail.spooled is spooled:  # still, after a file was read
            break
    reader.above = b"" if mail.above is None else mail.above
    reader.hidden = mail.hidden
    reader.begin()
    return reader


cdef bytes beginning_of(Spooled spooled, Py_ssize_t hidden):
    """As much as has the header."""
    cdef Py_ssize_t size = hidden + FIRST_READ
    cdef bytes text
    while size < spooled.length():
        text = spooled.part(0, size)
        if has_all(text, hidden):
            return text
        size *= 4
    return spooled.read()


# --------------------------------------------------------------------------------------------------------------- Editing

cdef int set_name(Name *name, str text) except -1:
    """What stands for a field's name; ValueError: it can be none."""
    cdef Py_ssize_t index
    name.text = PyUnicode_AsUTF8AndSize(text, &name.size)
    for index in range(name.size):
        if not c"!" <= name.text[index] <= c"~" or name.text[index] == c":":
            break
    else:
        if name.size:
            return 0
    raise ValueError(f"the name of a header field has printable ASCII characters, no blank and no colon; not {text!r}")


cdef bytes make_field(Name *name, str text, value, Mail mail):
    """A field of this name, which is `text`, with its line end. What is not short is for `encode`, which also says what cannot
    be written."""
    cdef bytes line_end = new_reader(mail).line_end()
    cdef bytes field = make_short(name, <str>value, line_end) if type(value) is str else None
    if field is None:
        from .fields import encode  # which needs the package email: many runs do not
        field = b"%b: %b%b" % (text.encode(), encode(text, value, line_end), line_end)
    return field


cdef bytes make_short(Name *name, str value, bytes line_end):
    """A field in one line of printable ASCII; None: it is none. Allocates bytes and nothing else."""
    if not PyUnicode_IS_COMPACT_ASCII(value):
        return None
    cdef const char *text = PyUnicode_1BYTE_DATA(value)
    cdef Py_ssize_t size = len(value)
    cdef Py_ssize_t end = PyBytes_GET_SIZE(line_end)
    cdef Py_ssize_t index
    if name.size + size > SHORT - 2:
        return None
    for index in range(size):
        if not c" " <= text[index] <= c"~":
            return None
    while size and text[0] == c" ":
        text += 1
        size -= 1
    while size and text[size - 1] == c" ":
        size -= 1
    cdef bytes field = PyBytes_FromStringAndSize(NULL, name.size + 2 + size + end)
    cdef char *to = PyBytes_AS_STRING(field)
    memcpy(to, name.text, name.size)
    to += name.size
    to[0] = c":"
    to[1] = c" "
    memcpy(to + 2, text, size)
    memcpy(to + 2 + size, PyBytes_AS_STRING(line_end), end)
    return field


cdef Edit edit(Reader reader, Name *name, bytes replacement, char *to) noexcept:
    """The header without the fields of that name, and with `replacement`, unless it is None, where the first of them was: what
    is to be above then, which is written to `to` unless that is NULL."""
    cdef Edit edited = [0, 0, reader.hidden]
    cdef const char *text = PyBytes_AS_STRING(reader.above)
    cdef Py_ssize_t at = 0
    cdef bint in_rest = False
    reader.begin()
    while reader.next():
        if not reader.is_named(name):
            continue
        if reader.in_rest and not in_rest:
            append(&edited, to, text + at, PyBytes_GET_SIZE(reader.above) - at)
            text = PyBytes_AS_STRING(reader.rest)
            at = reader.hidden
            in_rest = True
        append(&edited, to, text + at, reader.field.start - at)
        if replacement is not None and edited.count == 0:
            append(&edited, to, PyBytes_AS_STRING(replacement), PyBytes_GET_SIZE(replacement))
        at = reader.field.stop
        edited.count += 1
    if in_rest:
        edited.hidden = at
    else:
        append(&edited, to, text + at, PyBytes_GET_SIZE(reader.above) - at)
    return edited


cdef inline void append(Edit *edited, char *to, const char *text, Py_ssize_t size) noexcept:
    if to != NULL:
        memcpy(to + edited.size, text, size)
    edited.size += size


cdef Py_ssize_t apply_edit(Mail mail, Name *name, bytes replacement) except -1:
    """How many fields had that name. With none, nothing is changed."""
    cdef Reader reader = new_reader(mail)
    cdef Edit edited = edit(reader, name, replacement, NULL)
    cdef bytes above
    if edited.count:
        above = PyBytes_FromStringAndSize(NULL, edited.size)
        edit(reader, name, replacement, PyBytes_AS_STRING(above))
        put_above(mail, above, edited.hidden)
    return edited.count


cdef int put_on_top(Mail mail, bytes field) except -1:
    cdef Reader reader = new_reader(mail)
    cdef Py_ssize_t at = reader.at
    cdef Py_ssize_t hidden = reader.hidden
    cdef bytes before, after
    if reader.in_rest and at == hidden and not reader.needs_blank_line():
        put_above(mail, field, hidden)
        return 0
    if reader.in_rest:
        before = reader.rest[hidden:at]
        after = b""
        hidden = at
    else:
        before = reader.above[:at]
        after = reader.above[at:]
    if reader.needs_blank_line():
        field += reader.line_end()
    put_above(mail, before + field + after, hidden)
    return 0


cdef void put_above(Mail mail, bytes above, Py_ssize_t hidden) noexcept:
    if mail.content is None and mail.spooled is None:
        mail.content = b""
    mail.above = above
    mail.hidden = hidden


# ------------------------------------------------------------------------------------------------------------------ View

@cython.final
cdef class Headers:
    """The fields of a mail's header, in their order; edits take effect on the mail at once, and leave all else as it was, byte
    for byte.

    Names are alike whatever their case. A value is text in one line: what is folded over several is joined. It is as it stands
    there: encoded words stay encoded (`get_decoded` reads them), and octets that are no UTF-8 become surrogates, as with
    `os.fsdecode`. A value that is written is a str, which is folded, and in encoded words where it is not ASCII; or bytes,
    which are written as they are, and may be folded already. What would end the field, in a name or a value, is a ValueError.

    `for name in headers`, `len(headers)` and `headers.items()` are about each field, also where several have one name;
    `headers[name]` is the value of the first, or a KeyError.

    The header ends at an empty line, or at the first line that is no field.
    """
    cdef Mail mail

    def __cinit__(self, Mail mail not None):
        self.mail = mail

    def get(self, str name not None, default=None):
        """The value of the first field of that name."""
        cdef Reader reader = self.find(name)
        return default if reader is None else reader.value()

    def get_decoded(self, str name not None, default=None):
        """The same, with encoded words (RFC 2047) decoded as far as they can be."""
        from .fields import decode
        cdef Reader reader = self.find(name)
        return default if reader is None else decode(reader.value())

    def get_all(self, str name not None):
        """The values of all fields of that name: a list, from the top."""
        cdef list values = []
        cdef Name wanted
        set_name(&wanted, name)
        cdef Reader reader = new_reader(self.mail)
        while reader.next():
            if reader.is_named(&wanted):
                values.append(reader.value())
        return values

    def add(self, str name not None, value):
        """Put a field above all others."""
        cdef Name checked
        set_name(&checked, name)
        put_on_top(self.mail, make_field(&checked, name, value, self.mail))

    def replace(self, str name not None, value):
        """Put a field where the first one of that name is, and remove the others; above all, if there is none."""
        cdef Name wanted
        set_name(&wanted, name)
        cdef bytes field = make_field(&wanted, name, value, self.mail)
        if apply_edit(self.mail, &wanted, field) == 0:
            put_on_top(self.mail, field)

    def remove(self, str name not None):
        """Remove all fields of that name. How many there were."""
        cdef Name wanted
        set_name(&wanted, name)
        return apply_edit(self.mail, &wanted, None)

    def items(self):
        """The names and values of all fields: a list, from the top."""
        cdef list items = []
        cdef Reader reader = new_reader(self.mail)
        while reader.next():
            if reader.field.name_size:
                items.append((reader.name(), reader.value()))
        return items

    cdef Reader find(self, str name):
        """At the first field of that name, or None."""
        cdef Name wanted
        set_name(&wanted, name)
        cdef Reader reader = new_reader(self.mail)
        while reader.next():
            if reader.is_named(&wanted):
                return reader
        return None

    def __getitem__(self, str name not None):
        cdef Reader reader = self.find(name)
        if reader is None:
            raise KeyError(name)
        return reader.value()

    def __contains__(self, str name not None):
        return self.find(name) is not None

    def __iter__(self):
        cdef list names = []
        cdef Reader reader = new_reader(self.mail)
        while reader.next():
            if reader.field.name_size:
                names.append(reader.name())
        return iter(names)

    def __len__(self):
        cdef Py_ssize_t count = 0
        cdef Reader reader = new_reader(self.mail)
        while reader.next():
            count += reader.field.name_size != 0
        return count

    def __repr__(self):
        return f"<Headers {self.items()}>"


seal(Reader)
