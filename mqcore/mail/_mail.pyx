"""`Mail`, the message that passes through the hooks when what passes is mail, and the `Connection` that it came in by."""

from hashlib import blake2b

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_FindChar
from libc.string cimport memcpy
from .._message cimport Message
from ._spool cimport Spool, Spooled

from .origin import Origin
from .verdicts import Rejection

cdef object headers_type = None  # of _headers, which is built on this module


cdef class Connection:
    """The connection that a mail came in by.

    `id`: no other connection of the run has it. `peer`: the client's IP address. `helo`: what the client calls itself, None
    until it says so. `tls`. `authenticated`: a plugin that implements `mq_smtp_in_authenticate` sets it. `data`: what
    plugins know about the connection; each keeps to keys of its own. `forwarded`: what the client says of the one whose mail
    it forwards, by XFORWARD: a dict with name, addr, port, proto, helo, ident, source, as far as it says so; else None.
    `transport`: its end here, None when it is gone; for
    native plugins, whose functions reach it.
    """

    def __init__(
        self, id, str peer not None, helo=None, bint tls=False, bint authenticated=False, data=None, transport=None,
        forwarded=None
    ):
        self.id = id
        self.peer = peer
        self.helo = helo
        self.tls = tls
        self.authenticated = authenticated
        self.data = {} if data is None else data
        self.transport = transport
        self.forwarded = forwarded

    @property
    def transport(self):
        return self.end if self.whole is None else self.whole.end

    @transport.setter
    def transport(self, transport):
        if self.whole is None:
            self.end = transport
        else:
            self.whole.end = transport

    def __repr__(self):
        return (f"Connection(id={self.id}, peer={self.peer!r}, helo={self.helo!r}, tls={self.tls}, "
                f"authenticated={self.authenticated}, data={self.data!r})")


cdef class Unread:

    cdef dict read_known(self):
        """What `json` gives. For subclasses to override."""
        return {}

    cdef object read_origin(self):
        """What `origin` gives. For subclasses to override."""
        return None


cdef class Mail(Message):
    """One mail on its way through the plugins.

    `mime` is the whole mail, as bytes; a plugin changes the mail by setting it, or by `headers`, which reads and edits the
    fields of its header and leaves the rest as it is. All else that is known about the mail
    is in `json`, a dict with MailerQ's keys, in which a plugin may keep keys of its own. `envelope`, `recipient` and
    `recipients` are short for the keys of the same names.

    `origin` is the mail as the source has it, whatever plugins changed since. `connection` is None for a mail that came
    from a file. `results` is what the next server said to each recipient, when the mail goes out by SMTP. `rejected_by` is
    the name of the plugin that rejected the mail, None if none did; `discarded` is whether one discarded it.
    """

    def __init__(self, mime, *, envelope=None, recipients=(), json=None, connection=None, origin=None):
        self.mime = mime
        self.known = dict(json) if json else {}
        if envelope is not None:
            self.envelope = envelope
        if recipients:
            self.recipients = recipients
        self.connection = connection
        if origin is None:
            origin = Origin(mime, blake2b(mime, digest_size=16).hexdigest(), envelope=envelope)
        self.whence = origin

    @classmethod
    def read(cls, origin):
        """The mail as its source has it."""
        mail = cls(origin.mime, envelope=origin.envelope, origin=origin)
        if origin.recipient is not None:
            mail.recipient = origin.recipient
        return mail

    @property
    def mime(self):
        """The whole mail."""
        return self.whole()

    @mime.setter
    def mime(self, mime):
        if not isinstance(mime, bytes):  # said to the plugin that sets it, not to the sink that cannot store it
            raise TypeError(f"mime is the mail as bytes, not as {type(mime).__name__}")
        self.set_bytes(mime)

    cdef int set_bytes(self, bytes mime) except -1:
        self.content = mime
        self.spooled = None
        self.above = None
        self.hidden = 0
        return 0

    cdef bytes whole(self):
        """`mime`. A header that was edited is joined with the rest when somebody asks for all of it, once."""
        if self.above is None:
            return self.content if self.spooled is None else self.spooled.read()
        cdef bytes rest = self.content if self.spooled is None else self.spooled.part(self.hidden, self.spooled.length())
        cdef Py_ssize_t skipped = self.hidden if self.spooled is None else 0
        cdef Py_ssize_t top = PyBytes_GET_SIZE(self.above)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(rest) - skipped
        cdef bytes mime = PyBytes_FromStringAndSize(NULL, top + size)
        memcpy(PyBytes_AS_STRING(mime), PyBytes_AS_STRING(self.above), top)
        memcpy(PyBytes_AS_STRING(mime) + top, PyBytes_AS_STRING(rest) + skipped, size)
        if self.spooled is None:
            self.set_bytes(mime)
        return mime

    cdef Py_ssize_t length(self) noexcept:
        """Of `mime`."""
        cdef Py_ssize_t size = 0
        if self.spooled is not None:
            size = self.spooled.length()
        elif self.content is not None:
            size = PyBytes_GET_SIZE(self.content)
        return size if self.above is None else PyBytes_GET_SIZE(self.above) + size - self.hidden

    @property
    def headers(self):
        """The fields of the header: a `Headers`."""
        global headers_type
        if headers_type is None:
            from ._headers import Headers
            headers_type = Headers
        return headers_type(self)

    @property
    def size(self):
        """Octets of `mime`, without making it."""
        return self.length()

    cdef object all_known(self):
        if self.known is None and self.unread is not None:
            self.known = self.unread.read_known()
        return self.known

    @property
    def origin(self):
        """The mail as its source has it."""
        if self.whence is None and self.unread is not None:
            self.whence = self.unread.read_origin()
        return self.whence

    @property
    def json(self):
        """All else that is known."""
        return self.all_known()

    @json.setter
    def json(self, json):
        if not isinstance(json, dict):
            raise TypeError(f"json is a dict, not {type(json).__name__}")
        self.known = json

    @property
    def results(self):
        """What the next server said to each recipient."""
        if self.result_list is None:
            self.result_list = []
        return self.result_list

    @results.setter
    def results(self, results):
        self.result_list = results

    @property
    def envelope(self):
        """The sender's address; empty for a bounce, None if it is not known."""
        return address_in(self.all_known(), "envelope")

    @envelope.setter
    def envelope(self, address):
        self.all_known()["envelope"] = None if address is None else one_line("envelope", address)

    @property
    def recipient(self):
        """The address that this mail is for, None if it is not known."""
        return address_in(self.all_known(), "recipient")

    @recipient.setter
    def recipient(self, address):
        self.all_known()["recipient"] = None if address is None else one_line("recipient", address)

    @property
    def recipients(self):
        """All addresses that the mail was sent to: `recipient` alone, unless more are known."""
        recipients = self.all_known().get("recipients")
        if recipients is None:
            return [] if self.recipient is None else [self.recipient]
        return recipients

    @recipients.setter
    def recipients(self, addresses):
        if isinstance(addresses, (str, bytes)):
            raise TypeError(f"the recipients are a list of addresses, not {addresses!r}; write a list, also for one")
        self.all_known()["recipients"] = [one_line("recipient", address) for address in addresses]

    @property
    def rejection(self):
        """What the mail is refused with, or None."""
        return self.refusal

    @rejection.setter
    def rejection(self, rejection):
        if rejection is None:
            self.refusal = self.rejected_by = None
            self.skipping = False
            if self.discarded:
                self.skip_others()
        else:
            code, text = rejection
            self.reject(code, text)

    def reject(self, code, text):
        """Refuse the mail with an SMTP reply, as `mail.reject(550, "no such user")`.

        It does not go to the sink. At a stage of SMTP where there is no mail yet, what is refused is the client's command.
        That is decided: when the plugin says that it is done with the mail, the plugins after it are not called, and what is
        rejected or discarded after that stays as it was. A plugin that holds the mail still has to give it back.
        """
        if not isinstance(code, int) or isinstance(code, bool):
            raise TypeError(f"a mail is rejected with an int and a text, as reject(550, 'no such user'); the code is {code!r}")
        number = int.__index__(code)
        if not 400 <= number <= 599:
            raise ValueError(f"a mail is rejected with a code from 400 to 599, not {number}")
        rejection = Rejection(number, one_line("text of a rejection", text))
        if self.refusal is None and not self.discarded:
            self.refusal = rejection
            self.rejected_by = self.decide()

    def discard(self):
        """Accept the mail, and drop it: whoever sent it is told that all is well. Decided as by `reject`.

        At the stages of SMTP where there is no mail yet, that is what comes for this recipient, in this transaction, or in
        this connection.
        """
        if self.refusal is None and not self.discarded:
            self.discarded = True
            self.decide()

    cdef object decide(self):
        """A plugin decides about the mail. Its name, or None where it was none."""
        cdef PyObject *plugin = self.current_plugin()
        self.skip_others()
        return None if plugin == NULL else <str>plugin

    def __repr__(self):
        return f"<Mail {self.origin.id} from {self.envelope!r}, {self.length()} bytes>"


cdef Connection new_connection(object id, str peer, object helo, bint tls, bint authenticated, object transport):
    """What `Connection` makes of these."""
    cdef Connection connection = Connection.__new__(Connection)
    connection.id = id
    connection.peer = peer
    connection.helo = helo
    connection.tls = tls
    connection.authenticated = authenticated
    connection.data = {}
    connection.end = transport
    return connection


cdef Connection for_transaction(Connection connection, object forwarded):
    """The same, with what is said by XFORWARD of the mails of one transaction: those before keep theirs."""
    cdef Connection part = new_connection(
        connection.id, connection.peer, connection.helo, connection.tls, connection.authenticated, None)
    part.data = connection.data
    part.forwarded = forwarded
    part.whole = connection if connection.whole is None else connection.whole
    return part


cdef Mail new_mail(bytes mime, object json, object connection, object origin):
    """The mail that `Mail` makes of these, which has `json` itself."""
    cdef Mail mail = Mail.__new__(Mail)
    mail.content = mime
    mail.known = json
    mail.connection = connection
    mail.whence = origin
    return mail


cdef Mail new_unread_mail(bytes mime, Unread unread):
    """One whose `json` and `origin` are made when somebody asks for them."""
    cdef Mail mail = Mail.__new__(Mail)
    mail.content = mime
    mail.unread = unread
    return mail


def copy_rejected(Mail mail not None, dict json not None):
    """What plugins see of a mail that was rejected: the same, with `json` for its own, and its bytes shared."""
    cdef Mail copy = new_mail(mail.content, json, mail.connection, mail.origin)
    copy.spooled = mail.spooled
    copy.above = mail.above
    copy.hidden = mail.hidden
    copy.refusal = mail.refusal
    copy.rejected_by = mail.rejected_by
    return copy


cdef object address_in(object known, str key):
    """What plugins put into `json` may be anything, and whatever is no address must not reach a sink."""
    value = (<dict>known).get(key) if type(known) is dict else known.get(key)
    return value if isinstance(value, str) and is_one_line(<str>value) else None


cdef inline bint is_one_line(str text) except -1:
    cdef Py_ssize_t size = len(text)
    return PyUnicode_FindChar(text, c"\r", 0, size, 1) == -1 and PyUnicode_FindChar(text, c"\n", 0, size, 1) == -1


cdef object one_line(str what, text):
    if not isinstance(text, str):
        raise TypeError(f"the {what} is a str, not {text!r}")
    if not is_one_line(text):
        raise ValueError(f"the {what} must be one line, without CR or LF: {text!r}")
    return text


def put_in_spool(Mail mail not None, Spool spool not None):
    """Keep the bytes of a mail in little memory, beside those of others that are alike, as long as they do not change. It
    gives them as before, made anew each time. OSError: there is no room for them, and it has them still.
    """
    if mail.content is None and mail.spooled is None or mail.spooled is not None and mail.above is None:
        return
    if mail.above is None:
        kept = spool.take(mail.content)
    elif mail.spooled is None:
        kept = spool.take_edited(mail.above, mail.content, mail.hidden)
    else:
        kept = take_edited_again(mail, spool)
    if isinstance(kept, Spooled):
        mail.set_bytes(None)
        mail.spooled = kept
    else:
        mail.set_bytes(kept)


cdef object take_edited_again(Mail mail, Spool spool):
    """What to keep for a mail whose header was edited when it was in a spool."""
    cdef Spooled spooled = mail.spooled
    cdef Py_ssize_t rest = spooled.length() - mail.hidden
    if rest > spooled.tail:
        return spool.take(mail.whole())
    return spool.take_edited(mail.above, spooled.base, PyBytes_GET_SIZE(spooled.base) - rest)


def bytes_of(Mail mail not None):
    """What stands for the bytes of a mail: where it is equal, so are they."""
    if mail.spooled is None or mail.above is not None:
        return mail.whole()
    return mail.spooled
