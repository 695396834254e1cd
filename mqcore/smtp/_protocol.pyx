"""SMTP and LMTP as a server speaks them, without any I/O: bytes in, events and replies out."""

import re

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8
from libc.string cimport memchr

from ._data cimport DataReceiver, new_receiver
from ._lines cimport argument_of, decode, may_come_before_tls, plain_address, says, without_argument
from ._terms cimport Terms, terms_of

from . import syntax, xclient
from .events import Authenticate, MailFrom, Message, RcptTo, StartTls, XClient
from .lenient import parse_path
from .syntax import ReplyError

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text) noexcept

cdef enum:
    LONGEST_VERB = 10
    MUCH = 1 << 12          # octets of replies that are put into one piece

cdef dict STAGES = {"MAIL": "mailfrom", "RCPT": "rcptto", "DATA": "data", "STAR": "secure", "AUTH": "authenticate"}

# A browser that was made to talk to us, or a header of its request: commands may hide further down.
cdef object is_http = re.compile(
    r"(?:GET|POST|PUT|HEAD|OPTIONS|CONNECT|DELETE|PATCH|PRI)\b|[\w-]+:", re.IGNORECASE
).match


@cython.final
cdef class ServerProtocol:
    """The server's side of one connection.

    It begins by waiting for `accept`, which greets the client, or `reject`. From then on: give it what arrived with
    `receive`; take each event with `next_event`; answer it with `accept` or `reject`, now or later, as commands behind
    it wait; and send what `take_output` returns. When `closed` is true, close the connection after that.

    Whatever the client sends, it gets a reply of SMTP. In LMTP, a message gets one for each RCPT that was accepted, in their
    order (RFC 2033, 4.2): the same for all by `accept` and `reject`, or one of its own for each by `answer_each`.

    `dsn`: what the MAIL or RCPT that was last taken says of delivery status notifications; None or empty if nothing.
    `may_xclient`, `may_xforward`: whether the client may say for whom it speaks; the host sets them before it greets.
    `forwarded`: what it said by XFORWARD of the client whose mail comes next, or is coming; None if nothing.
    `helo`: what the client calls itself; None until it said HELO or EHLO.
    `receiver`: the message that is coming in.
    `in_transaction`: from an accepted MAIL to the reply to its message.
    """

    def __cinit__(self, service not None, *, bint secure=False):
        self.terms = terms_of(service)
        self.secure = secure
        self.must_secure = self.terms.require_tls and not secure
        self.buffer = b""
        self.due = GREETING

    cdef int reset(self) except -1:
        self.in_transaction = False
        self.utf8 = False
        self.forwarded = None
        self.recipients = 0
        return 0

    # What the host calls

    @property
    def buffered(self):
        """Octets that wait to be taken, without those of a message that is coming in."""
        return len(self.buffer) - self.at

    cpdef int receive(self, bytes data) except -1:
        """Add what the client sent."""
        if data is None:
            raise TypeError("receive() needs bytes")
        self.buffer = self.buffer[self.at :] + data if self.at < len(self.buffer) else data
        self.at = 0
        return 0

    cpdef object next_event(self):
        """What the client wants next; None when more must arrive, or the event before must be answered first.

        For programs with sockets of their own (`mqcore.smtp.server`); mqcore's own server calls `next_payload`.
        """
        payload = self.next_payload()
        if payload is None:
            return None
        if self.due == MAIL_FROM:
            return MailFrom(payload)
        if self.due == RCPT_TO:
            return RcptTo(payload)
        if self.due == AUTHENTICATE:
            return Authenticate(*payload)
        if self.due == GREETING:
            return XClient(payload)
        if self.due != MESSAGE:
            return StartTls()
        try:
            return Message((<DataReceiver?>payload).below(b""))
        except MemoryError:
            self.reject(452, syntax.NO_MEMORY)
            return self.next_event()

    cdef object next_payload(self):
        """`next_event`, for callers that look at `due`: only what the event has, which is an address, the receiver of a mail,
        login and password, the attributes of XCLIENT, or of StartTls nothing but True."""
        cdef str line
        while self.due == NOTHING and not self.closed:
            if self.at == len(self.buffer) and not self.shutting_down:
                return None  # as after nearly every command
            line = None
            try:
                if self.receiver is not None:
                    if not self.collect():
                        return None
                    line = "DATA"
                    payload = self.end_message()
                elif self.shutting_down and not self.in_transaction:
                    self.close(f"421 {syntax.SHUTTING_DOWN}")
                    return None
                else:
                    line = self.take_line()
                    if line is None:
                        return None
                    payload = self.obey(line)
            except ReplyError as error:
                self.note(line, str(error))
                self.expected = COMMAND
                self.complain(str(error))
                continue
            if payload is not None:
                return payload
        return None

    cpdef bytes take_output(self):
        """What to send to the client, in order."""
        cdef bytes out = self.out
        if out is None:
            return b""
        self.out = None
        if self.long_out is not None:
            self.long_out.append(out)
            out = b"".join(self.long_out)
            self.long_out = None
        return out

    @property
    def lmtp(self):
        return self.terms.lmtp

    @property
    def waiting(self):
        """Whether an answer is due."""
        return self.due != NOTHING

    cpdef int accept(self, str text="") except -1:
        """Answer the event, or greet, with success; the reply to a message may have a text of its own."""
        cdef Due due = self.due
        self.due = NOTHING
        if due == RCPT_TO:
            self.recipients += 1
            self.put(b"250 2.1.5 recipient ok\r\n")
        elif due == MAIL_FROM:
            self.in_transaction = True
            self.put(b"250 2.1.0 sender ok\r\n")
        elif due == MESSAGE:
            self.idle_commands = 0
            reply = f"250 2.6.0 {text or 'message accepted'}\r\n".encode()
            if self.terms.lmtp:
                self.put_to_others(reply)
            self.reset()
            self.put(reply)
        elif due == AUTHENTICATE:
            self.authenticated = True
            self.say("235 2.7.0 you are logged in")
        elif due == GREETING:
            self.put(self.terms.greeting)
        return 0

    cpdef int reject(self, int code, str text) except -1:
        """Answer the event, or greet, with this refusal. 421 closes the connection.

        A client that is refused when it connects, or when TLS has begun, gets the same reply to all it says.
        """
        cdef Due due = self.due
        self.due = NOTHING
        reply = syntax.format_reply(code, text)
        if due == GREETING or due == START_TLS:
            self.refusal = reply
        if due == START_TLS:
            return 0  # it is the client's turn to speak
        if code == 421:
            self.close(reply)
        elif due == AUTHENTICATE:
            self.complain(reply)
        elif due == MESSAGE:
            self.say_to_others(reply)
            self.reset()
            self.say(reply)
        else:
            self.say(reply)
        return 0

    cpdef int answer_each(self, list replies) except -1:
        """Answer a message of LMTP with a code and a text for each RCPT that was accepted. 421 closes the connection behind all
        of them, and is said as 451: after a 421 the client might not read what became of the others."""
        if not (self.terms.lmtp and self.due == MESSAGE and len(replies) == self.recipients):
            raise ValueError("these are no replies to each recipient of a message")
        cdef bint going = False
        self.due = NOTHING
        self.idle_commands = 0
        self.reset()
        for code, text in replies:
            if code == 421:
                going = True
                code = 451
            self.say(f"250 2.6.0 {text or 'message accepted'}" if code == 250 else syntax.format_reply(code, text))
        return self.close("421 4.3.2 this server closes the connection") if going else 0

    def secured(self):
        """TLS has begun. Whatever was said before is forgotten, as somebody else may have said it."""
        self.secure = True
        self.must_secure = False
        self.extended = False
        self.helo = None
        self.authenticated = False
        self.reset()

    def shut_down(self):
        """Say goodbye as soon as no transaction is open; `next_event` does."""
        self.shutting_down = True

    def give_up(self, int code, str text not None):
        """Close the connection with this reply, whatever was going on."""
        self.due = NOTHING
        self.close(syntax.format_reply(code, text))

    # What it says

    cdef int put(self, bytes reply) except -1:
        if self.out is None:
            self.out = reply
        elif PyBytes_GET_SIZE(self.out) < MUCH:
            self.out = self.out + reply
        else:
            if self.long_out is None:
                self.long_out = []
            self.long_out.append(self.out)
            self.out = reply
        return 0

    cdef int say(self, str reply) except -1:
        return self.put((reply + "\r\n").encode())

    cdef int put_to_others(self, bytes reply) except -1:
        """In LMTP, the reply to a message once for each of its recipients but one, who gets it next."""
        cdef unsigned int count = self.recipients - 1 if self.terms.lmtp and self.recipients else 0
        for _ in range(count):
            self.put(reply)
        return 0

    cdef int say_to_others(self, str reply) except -1:
        return self.put_to_others((reply + "\r\n").encode())

    cdef int say_idly(self, str reply) except -1:
        """The reply to a command that moves no mail."""
        self.say(reply)
        self.idle_commands += 1
        if self.idle_commands > self.terms.max_idle_commands:
            self.count_error()
        return 0

    cdef int complain(self, str reply) except -1:
        self.say(reply)
        self.count_error()
        return 0

    cdef int count_error(self) except -1:
        self.errors += 1
        if self.errors > self.terms.max_errors:
            self.note(None, "421 4.7.0 too many errors")
            self.close("421 4.7.0 too many errors")
        return 0

    cdef int note(self, str line, str reply) except -1:
        """Keep for `take_faults` that a command, or with None something else, is refused. Never what AUTH sends."""
        cdef str stage = "command"
        cdef str address = ""
        if reply == self.refusal:  # once is enough
            return 0
        if self.expected != COMMAND:
            stage = "authenticate"
        elif line is not None:
            stage = STAGES.get(line[:4].upper(), "command")
            if stage == "mailfrom" or stage == "rcptto":
                address = argument_of(line)
                match = (syntax.parse_from if stage == "mailfrom" else syntax.parse_to)(address)
                if match is not None:  # else all of it is told
                    address = match[1] or ""
        if self.faults is None:
            self.faults = []
        self.faults.append((stage, address, reply))
        return 0

    cdef list take_faults(self):
        faults, self.faults = self.faults, None
        return faults

    cdef int close(self, str reply) except -1:
        self.say(reply)
        self.buffer = b""
        self.at = 0
        self.receiver = None
        self.closed = True
        return 0

    # What it takes

    cdef str take_line(self):
        """The next line, without its end; None if there is no whole line yet. Raises ReplyError for what is no line."""
        cdef const char *data = self.buffer
        cdef const char *start = data + self.at
        cdef const char *end = <const char *>memchr(start, c"\n", len(self.buffer) - self.at)
        if end == NULL:
            if self.skipping or len(self.buffer) - self.at > self.terms.max_line:
                self.skipping = True
                self.at = len(self.buffer)
            return None
        cdef Py_ssize_t size = end + 1 - start
        self.at += size
        if self.skipping or size > self.terms.max_line:
            self.skipping = False
            raise ReplyError("500 5.5.2 this line is too long")
        try:
            return decode(start, size, self.terms.lenient)
        except ReplyError:
            if self.expected == COMMAND:
                raise
            raise ReplyError(syntax.NO_BASE64) from None  # RFC 4954, 4

    cdef bint collect(self) except -1:
        """Whether the message is all there."""
        cdef const char *data = self.buffer
        cdef Py_ssize_t taken = self.receiver.collect(data + self.at, len(self.buffer) - self.at)
        self.at = self.at + taken if taken else len(self.buffer)
        if self.receiver.is_endless:
            self.note("DATA", self.receiver.fault)
            self.close(self.receiver.fault)
            return False
        return taken > 0

    cdef DataReceiver end_message(self):
        receiver = self.receiver
        self.receiver = None
        try:
            receiver.check()
        except ReplyError as error:
            self.say_to_others(str(error))
            self.reset()
            raise
        self.due = MESSAGE
        return receiver

    cdef object obey(self, str line):
        if self.expected != COMMAND:
            return self.take_login(line)
        cdef bytes verb  # of what may be no text
        cdef const char *text
        if PyUnicode_IS_ASCII(line):
            text = PyUnicode_AsUTF8(line)
        else:
            verb = line[:LONGEST_VERB + 1].encode("ascii", "replace")
            text = verb
        if self.refusal is not None and not says(text, b"QUIT"):
            if self.refusal.startswith("421"):
                self.close(self.refusal)
                return None
            raise ReplyError(self.refusal)
        if self.must_secure and not may_come_before_tls(text):
            raise ReplyError("530 5.7.0 say STARTTLS first")
        if says(text, b"MAIL"):
            return self.mail(line)
        if says(text, b"RCPT"):
            return self.rcpt(line)
        if says(text, b"DATA"):
            self.data(line)
            return None
        return self.obey_other(line, text)

    cdef object obey_other(self, str line, const char *text):
        """What is not said for every mail."""
        if says(text, b"LHLO" if self.terms.lmtp else b"EHLO"):
            self.ehlo(argument_of(line))
        elif says(text, b"HELO") and not self.terms.lmtp:
            self.greet(argument_of(line))
            self.say_idly(f"250 {self.terms.service.name}")
        elif says(text, b"RSET"):
            without_argument(line)
            self.reset()
            self.say_idly("250 2.0.0 ok")
        elif says(text, b"NOOP"):
            self.say_idly("250 2.0.0 ok")
        elif says(text, b"QUIT"):
            without_argument(line)
            self.close("221 2.0.0 bye")
        elif says(text, b"VRFY"):
            if not argument_of(line):
                raise ReplyError("501 5.5.4 say VRFY and an address")
            self.say_idly("252 2.5.0 send it some mail and see")
        elif says(text, b"EXPN"):
            raise ReplyError("502 5.5.1 there are no lists to expand here")
        elif says(text, b"HELP"):
            self.say_idly("214 2.0.0 see RFC 5321")
        elif says(text, b"STARTTLS"):
            without_argument(line)
            return self.starttls()
        elif says(text, b"AUTH"):
            return self.auth(argument_of(line))
        elif says(text, b"XCLIENT"):
            return self.begin_again(argument_of(line))
        elif says(text, b"XFORWARD"):
            self.forward(argument_of(line))
        elif is_http(line):
            self.note(None, "421 4.7.0 this is no web server")
            self.close("421 4.7.0 this is no web server")
        else:
            raise ReplyError("500 5.5.1 no such command")
        return None

    # Commands

    cdef int greet(self, str name) except -1:
        if not name or " " in name or not name.isascii():
            raise ReplyError(f"501 5.5.4 say who you are: {'LHLO' if self.terms.lmtp else 'EHLO'} your.host.name")
        self.helo = name
        self.extended = False
        self.reset()
        return 0

    cdef int ehlo(self, str name) except -1:
        self.greet(name)
        self.extended = True
        cdef str offer = self.terms.offer
        if self.terms.starttls and not self.secure:
            offer += "250-STARTTLS\r\n"
        if self.takes_passwords():
            offer += "250-AUTH PLAIN LOGIN\r\n"
        if self.may_xclient:
            offer += f"250-XCLIENT {' '.join(xclient.XCLIENT)}\r\n"
        if self.may_xforward:
            offer += f"250-XFORWARD {' '.join(xclient.XFORWARD)}\r\n"
        return self.say_idly(offer + "250 ENHANCEDSTATUSCODES")

    cdef object mail(self, str line):
        if self.helo is None:
            raise ReplyError(f"503 5.5.1 say {'LHLO' if self.terms.lmtp else 'EHLO'} first")
        if self.in_transaction:
            raise ReplyError("503 5.5.1 a transaction is open; RSET ends it")
        if self.terms.require_login and not self.authenticated:
            raise ReplyError("530 5.7.0 log in first")
        address = plain_address(line, b"MAIL FROM:<", 11)
        self.utf8 = False
        self.dsn = None
        if address is None:
            address = self.take_sender(argument_of(line))
        self.due = MAIL_FROM
        return address

    cdef str take_sender(self, str argument):
        match = syntax.parse_from(argument)
        if match is None:
            address, text = self.take_path(argument, "FROM", "5.1.7", "say MAIL FROM:<address>")
        else:
            address, text = match.groups()
        if text:
            self.must_be_extended()
            parameters = syntax.parse_mail(text, auth=self.takes_passwords(), dsn=self.terms.dsn, lenient=self.terms.lenient)
            if parameters.size > self.terms.max_message:
                raise ReplyError(f"552 5.3.4 a message may have {self.terms.max_message} octets")
            self.utf8 = parameters.utf8
            self.dsn = parameters.dsn
        if address is None:
            return ""
        if not self.terms.lenient:
            syntax.check_address(address, utf8=self.utf8)
        return address

    cdef object take_path(self, str argument, str keyword, str code, str advice):
        """The address and the parameters of what is not as RFC 5321 has it. Raises ReplyError."""
        found = parse_path(argument, keyword) if self.terms.lenient else None
        if found is None:
            if syntax.has_path(argument):
                raise ReplyError(f"553 {code} this is no address")
            raise ReplyError(f"501 {code} {advice}")
        return found

    cdef int must_be_extended(self) except -1:
        if not self.extended:
            raise ReplyError(f"555 5.5.4 parameters are for those who say {'LHLO' if self.terms.lmtp else 'EHLO'}")
        return 0

    cdef object rcpt(self, str line):
        if not self.in_transaction:
            raise ReplyError("503 5.5.1 say MAIL first")
        address = plain_address(line, b"RCPT TO:<", 9)
        self.dsn = None
        if address is None:
            address = self.take_recipient(argument_of(line))
        if self.recipients >= self.terms.max_recipients:
            self.note(line, "452 4.5.3 no more recipients in this transaction")
            self.say("452 4.5.3 no more recipients in this transaction")
            return None
        self.due = RCPT_TO
        return address

    cdef str take_recipient(self, str argument):
        match = syntax.parse_to(argument)
        if match is None:
            address, parameters = self.take_path(argument, "TO", "5.1.3", "say RCPT TO:<address>")
        else:
            address, parameters = match.groups()
        if parameters:
            self.must_be_extended()
            self.dsn = syntax.parse_rcpt(parameters, dsn=self.terms.dsn, lenient=self.terms.lenient)
        if not address:
            raise ReplyError("501 5.1.3 a mail goes to nobody at <>")
        if not self.terms.lenient:
            syntax.check_address(address, utf8=self.utf8)
        return address

    cdef int data(self, str line) except -1:
        if len(line) > 4:
            without_argument(line)
        if not self.in_transaction:
            raise ReplyError("503 5.5.1 say MAIL first")
        if not self.recipients:
            raise ReplyError(f"{503 if self.terms.lmtp else 554} 5.5.1 no valid recipients")
        self.put(b"354 end with CR LF . CR LF\r\n")
        cdef Terms terms = self.terms
        self.receiver = new_receiver(terms.max_message, terms.trace, terms.max_loops, terms.lenient)
        return 0

    cdef object starttls(self):
        if self.secure:
            raise ReplyError("503 5.5.1 TLS has begun already")
        if not self.terms.starttls:
            raise ReplyError("502 5.5.1 STARTTLS is not offered")
        if self.at < len(self.buffer):
            # It came in the clear, from whoever was able to put it there, and would pass for what came by TLS.
            self.note("STARTTLS", "554 5.5.1 nothing may follow STARTTLS before its reply")
            self.close("554 5.5.1 nothing may follow STARTTLS before its reply")
            return None
        self.say("220 2.0.0 go ahead")
        self.due = START_TLS
        return True

    cdef object begin_again(self, str argument):
        """XCLIENT: what is known of the client for whom this one speaks."""
        if not self.may_xclient:
            raise ReplyError("550 5.7.0 XCLIENT is not for this client")
        if self.in_transaction:
            raise ReplyError("503 5.5.1 a transaction is open; RSET ends it")
        attributes = xclient.parse(argument, xclient.XCLIENT)
        self.extended = False
        self.helo = None
        self.authenticated = attributes.get("login") is not None
        self.reset()
        self.due = GREETING
        return attributes

    cdef int forward(self, str argument) except -1:
        if not self.may_xforward:
            raise ReplyError("550 5.7.0 XFORWARD is not for this client")
        if self.in_transaction:
            raise ReplyError("503 5.5.1 a transaction is open; RSET ends it")
        self.forwarded = {**(self.forwarded or {}), **xclient.parse(argument, xclient.XFORWARD)}
        return self.say_idly("250 2.0.0 ok")

    cdef bint takes_passwords(self) except -1:
        return self.terms.auth and (self.secure or self.terms.auth_without_tls)

    cdef object auth(self, str argument):
        if not self.terms.auth:
            raise ReplyError("503 5.5.1 AUTH is not offered")
        if not self.takes_passwords():
            raise ReplyError("538 5.7.11 say STARTTLS first")
        if not self.extended or self.authenticated or self.in_transaction:
            raise ReplyError("503 5.5.1 AUTH comes once, after EHLO and before MAIL")
        if not argument:
            raise ReplyError("501 5.5.4 say AUTH PLAIN or AUTH LOGIN")
        mechanism, _, initial = argument.partition(" ")
        mechanism = mechanism.upper()
        if mechanism == "PLAIN":
            self.expected = PLAIN
        elif mechanism == "LOGIN":
            self.expected = LOGIN
        else:
            raise ReplyError("504 5.5.4 PLAIN and LOGIN are known here")
        if initial:
            return self.take_login(initial)
        self.say("334 VXNlcm5hbWU6" if self.expected == LOGIN else "334 ")
        return None

    cdef object take_login(self, str line):
        """What is no command but comes after AUTH."""
        cdef Expected expected = self.expected
        if expected == LOGIN:
            self.login = syntax.decode_base64(line)
            self.expected = PASSWORD
            self.say("334 UGFzc3dvcmQ6")
            return None
        if expected == PLAIN:
            login, password = syntax.parse_plain(line)
        else:
            login, password = self.login, syntax.decode_base64(line)
        self.expected = COMMAND
        self.due = AUTHENTICATE
        return login, password
