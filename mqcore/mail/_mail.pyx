"""`Mail`, the message that passes through the hooks when what passes is mail, and the `Connection` that it came in by."""

from hashlib import blake2b

from cpython.bytes cimport PyBytes_GET_SIZE
from .._message cimport Message
from ._spool cimport Spool, Spooled

from .message import Origin, Rejection


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

    def __repr__(self):
        return (f"Connection(id={self.id}, peer={self.peer!r}, helo={self.helo!r}, tls={self.tls}, "
                f"authenticated={self.authenticated}, data={self.data!r})")


cdef class Mail(Message):
    """One mail on its way through the plugins.

    `mime` is the whole mail, as bytes; a plugin changes the mail by setting it. All else that is known about the mail
    is in `json`, a dict with MailerQ's keys, in which a plugin may keep keys of its own. `envelope`, `recipient` and
    `recipients` are short for the keys of the same names.

    `origin` is the mail as the source has it, whatever plugins changed since. `connection` is None for a mail that came
    from a file. `results` is what the next server said to each recipient, when the mail goes out by SMTP.
    """

    def __init__(self, mime, *, envelope=None, recipients=(), json=None, connection=None, origin=None):
        self.mime = mime
        self.known = dict(json) if json else {}
        if envelope is not None:
            self.envelope = envelope
        if recipients:
            self.recipients = list(recipients)
        self.connection = connection
        self.results = []
        if origin is None:
            origin = Origin(mime, blake2b(mime, digest_size=16).hexdigest(), envelope=envelope)
        self.origin = origin

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
        return self.content if self.spooled is None else self.spooled.read()

    @mime.setter
    def mime(self, mime):
        if not isinstance(mime, bytes):  # said to the plugin that sets it, not to the sink that cannot store it
            raise TypeError(f"mime is the mail as bytes, not as {type(mime).__name__}")
        self.content = mime
        self.spooled = None

    cdef Py_ssize_t length(self) noexcept:
        """Of `mime`."""
        if self.spooled is not None:
            return self.spooled.length()
        return PyBytes_GET_SIZE(self.content) if self.content is not None else 0

    @property
    def size(self):
        """Octets of `mime`, without making it."""
        return self.length()

    @property
    def json(self):
        """All else that is known."""
        return self.known

    @json.setter
    def json(self, json):
        if not isinstance(json, dict):
            raise TypeError(f"json is a dict, not {type(json).__name__}")
        self.known = json

    @property
    def envelope(self):
        """The sender's address; empty for a bounce, None if it is not known."""
        return address_in(self.known, "envelope")

    @envelope.setter
    def envelope(self, address):
        self.known["envelope"] = None if address is None else one_line("envelope", address)

    @property
    def recipient(self):
        """The address that this mail is for, None if it is not known."""
        return address_in(self.known, "recipient")

    @recipient.setter
    def recipient(self, address):
        self.known["recipient"] = None if address is None else one_line("recipient", address)

    @property
    def recipients(self):
        """All addresses that the mail was sent to: `recipient` alone, unless more are known."""
        recipients = self.known.get("recipients")
        if recipients is None:
            return [] if self.recipient is None else [self.recipient]
        return recipients

    @recipients.setter
    def recipients(self, addresses):
        self.known["recipients"] = [one_line("recipient", address) for address in addresses]

    @property
    def rejection(self):
        """What the mail is refused with, or None."""
        return self.refusal

    @rejection.setter
    def rejection(self, rejection):
        if rejection is None:
            self.refusal = None
        else:
            code, text = rejection
            self.reject(code, text)

    def reject(self, code, text):
        """Refuse the mail with an SMTP reply, as `mail.reject(550, "no such user")`.

        It does not go to the sink, however the step ends. At a stage of SMTP where there is no mail yet, what is refused
        is the client's command. The plugins after this one still see the mail, unless the hook returns COMPLETE. A second
        call replaces the first.
        """
        if not isinstance(code, int) or isinstance(code, bool):
            raise TypeError(f"a mail is rejected with an int and a text, as reject(550, 'no such user'); the code is {code!r}")
        number = int.__index__(code)
        if not 400 <= number <= 599:
            raise ValueError(f"a mail is rejected with a code from 400 to 599, not {number}")
        self.refusal = Rejection(number, one_line("text of a rejection", text))

    def __repr__(self):
        return f"<Mail {self.origin.id} from {self.envelope!r}, {len(self.mime)} bytes>"


cdef Mail new_mail(bytes mime, object json, object connection, object origin):
    """The mail that `Mail` makes of these, which has `json` itself."""
    cdef Mail mail = Mail.__new__(Mail)
    mail.content = mime
    mail.known = json
    mail.connection = connection
    mail.origin = origin
    mail.results = []
    return mail


cdef object address_in(object known, str key):
    """What plugins put into `json` may be anything, and whatever is no address must not reach a sink."""
    value = known.get(key)
    return value if isinstance(value, str) and "\r" not in value and "\n" not in value else None


cdef object one_line(str what, text):
    if not isinstance(text, str):
        raise TypeError(f"the {what} is a str, not {text!r}")
    if "\r" in text or "\n" in text:
        raise ValueError(f"the {what} must be one line, without CR or LF: {text!r}")
    return text


def put_in_spool(Mail mail not None, Spool spool not None):
    """Keep the bytes of a mail in little memory, beside those of others that are alike, as long as they do not change. It
    gives them as before, made anew each time. OSError: there is no room for them, and it has them still.
    """
    if mail.spooled is None and mail.content is not None:
        kept = spool.take(mail.content)
        if isinstance(kept, Spooled):
            mail.spooled = kept
            mail.content = None
        else:
            mail.content = kept


def bytes_of(Mail mail not None):
    """What stands for the bytes of a mail: where it is equal, so are they."""
    return mail.content if mail.spooled is None else mail.spooled
