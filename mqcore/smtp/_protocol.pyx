"""SMTP and LMTP as a server speaks them, without any I/O: bytes in, events and replies out."""

import re

cimport cython
from cpython.unicode cimport PyUnicode_AsUTF8, PyUnicode_AsUTF8AndSize
from libc.string cimport memchr, strlen

from ._data cimport DataReceiver

from . import syntax, xclient
from .events import Authenticate, MailFrom, Message, RcptTo, StartTls, XClient
from .lenient import parse_path
from .syntax import ReplyError

cdef extern from "Python.h":
    bint Py_ISALNUM(char character) noexcept
    bint PyUnicode_IS_ASCII(object text) noexcept
    int PyOS_strnicmp(const char *one, const char *other, Py_ssize_t size) noexcept

cdef enum:
    LONGEST_VERB = 10

cdef Py_ssize_t max_address = syntax.MAX_ADDRESS
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
        self.service = service
        self.lmtp = service.lmtp
        self.max_line = service.max_line
        self.max_recipients = service.max_recipients
        self.limits = service.max_message, service.trace, service.max_loops, service.lenient
        self.lenient = service.lenient
        self.secure = secure
        self.must_secure = service.require_tls and not secure
        self.must_log_in = service.require_login
        self.buffer = b""
        self.out = []
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
            self.reject(452, "4.3.1 there is no memory for this message; try again later")
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
                    self.close("421 4.3.2 this server is shutting down")
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
        cdef list out = self.out
        if len(out) == 1:
            return out.pop()
        self.out = []
        return b"".join(out)

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
            self.out.append(b"250 2.1.5 recipient ok\r\n")
        elif due == MAIL_FROM:
            self.in_transaction = True
            self.out.append(b"250 2.1.0 sender ok\r\n")
        elif due == MESSAGE:
            self.idle_commands = 0
            if self.lmtp:
                self.say_to_others(f"250 2.6.0 {text or 'message accepted'}")
            self.reset()
            self.say(f"250 2.6.0 {text or 'message accepted'}")
        elif due == AUTHENTICATE:
            self.authenticated = True
            self.say("235 2.7.0 you are logged in")
        elif due == GREETING:
            self.say(f"220 {self.service.name} {'LMTP' if self.lmtp else 'ESMTP'}")
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
        if not (self.lmtp and self.due == MESSAGE and len(replies) == self.recipients):
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

    cdef int say(self, str reply) except -1:
        self.out.append((reply + "\r\n").encode())
        return 0

    cdef int say_to_others(self, str reply) except -1:
        """In LMTP, the reply to a message once for each of its recipients but one, who gets it next."""
        cdef unsigned int count = self.recipients - 1 if self.lmtp and self.recipients else 0
        for _ in range(count):
            self.say(reply)
        return 0

    cdef int say_idly(self, str reply) except -1:
        """The reply to a command that moves no mail."""
        self.say(reply)
        self.idle_commands += 1
        if self.idle_commands > self.service.max_idle_commands:
            self.count_error()
        return 0

    cdef int complain(self, str reply) except -1:
        self.say(reply)
        self.count_error()
        return 0

    cdef int count_error(self) except -1:
        self.errors += 1
        if self.errors > self.service.max_errors:
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
            if self.skipping or len(self.buffer) - self.at > self.max_line:
                self.skipping = True
                self.at = len(self.buffer)
            return None
        cdef Py_ssize_t size = end + 1 - start
        self.at += size
        if self.skipping or size > self.max_line:
            self.skipping = False
            raise ReplyError("500 5.5.2 this line is too long")
        return decode(start, size, self.lenient)

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
        if says(text, b"LHLO" if self.lmtp else b"EHLO"):
            self.ehlo(argument_of(line))
        elif says(text, b"HELO") and not self.lmtp:
            self.greet(argument_of(line))
            self.say_idly(f"250 {self.service.name}")
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
            raise ReplyError(f"501 5.5.4 say who you are: {'LHLO' if self.lmtp else 'EHLO'} your.host.name")
        self.helo = name
        self.extended = False
        self.reset()
        return 0

    cdef int ehlo(self, str name) except -1:
        self.greet(name)
        self.extended = True
        starttls = "250-STARTTLS\r\n" if self.service.starttls and not self.secure else ""
        auth = "250-AUTH PLAIN LOGIN\r\n" if self.takes_passwords() else ""
        dsn = "250-DSN\r\n" if self.service.dsn else ""
        xclient_ = f"250-XCLIENT {' '.join(xclient.XCLIENT)}\r\n" if self.may_xclient else ""
        xforward = f"250-XFORWARD {' '.join(xclient.XFORWARD)}\r\n" if self.may_xforward else ""
        self.say_idly(
            f"250-{self.service.name}\r\n250-PIPELINING\r\n250-SIZE {self.service.max_message}\r\n250-8BITMIME\r\n"
            f"250-SMTPUTF8\r\n{dsn}{starttls}{auth}{xclient_}{xforward}250 ENHANCEDSTATUSCODES")
        return 0

    cdef object mail(self, str line):
        if self.helo is None:
            raise ReplyError(f"503 5.5.1 say {'LHLO' if self.lmtp else 'EHLO'} first")
        if self.in_transaction:
            raise ReplyError("503 5.5.1 a transaction is open; RSET ends it")
        if self.must_log_in and not self.authenticated:
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
            address, text = self.take_path(argument, "FROM", "501 5.1.7 say MAIL FROM:<address>")
        else:
            address, text = match.groups()
        if text:
            self.must_be_extended()
            parameters = syntax.parse_mail(text, auth=self.takes_passwords(), dsn=self.service.dsn, lenient=self.lenient)
            if parameters.size > self.service.max_message:
                raise ReplyError(f"552 5.3.4 a message may have {self.service.max_message} octets")
            self.utf8 = parameters.utf8
            self.dsn = parameters.dsn
        if address is None:
            return ""
        if not self.lenient:
            syntax.check_address(address, utf8=self.utf8)
        return address

    cdef object take_path(self, str argument, str keyword, str refusal):
        """The address and the parameters of what is not as RFC 5321 has it. Raises ReplyError."""
        found = parse_path(argument, keyword) if self.lenient else None
        if found is None:
            raise ReplyError(refusal)
        return found

    cdef int must_be_extended(self) except -1:
        if not self.extended:
            raise ReplyError(f"555 5.5.4 parameters are for those who say {'LHLO' if self.lmtp else 'EHLO'}")
        return 0

    cdef object rcpt(self, str line):
        if not self.in_transaction:
            raise ReplyError("503 5.5.1 say MAIL first")
        address = plain_address(line, b"RCPT TO:<", 9)
        self.dsn = None
        if address is None:
            address = self.take_recipient(argument_of(line))
        if self.recipients >= self.max_recipients:
            self.note(line, "452 4.5.3 no more recipients in this transaction")
            self.say("452 4.5.3 no more recipients in this transaction")
            return None
        self.due = RCPT_TO
        return address

    cdef str take_recipient(self, str argument):
        match = syntax.parse_to(argument)
        if match is None:
            address, parameters = self.take_path(argument, "TO", "501 5.1.3 say RCPT TO:<address>")
        else:
            address, parameters = match.groups()
        if parameters:
            self.must_be_extended()
            self.dsn = syntax.parse_rcpt(parameters, dsn=self.service.dsn, lenient=self.lenient)
        if not address:
            raise ReplyError("501 5.1.3 a mail goes to nobody at <>")
        if not self.lenient:
            syntax.check_address(address, utf8=self.utf8)
        return address

    cdef int data(self, str line) except -1:
        if len(line) > 4:
            without_argument(line)
        if not self.in_transaction:
            raise ReplyError("503 5.5.1 say MAIL first")
        if not self.recipients:
            raise ReplyError(f"{503 if self.lmtp else 554} 5.5.1 no valid recipients")
        self.out.append(b"354 end with CR LF . CR LF\r\n")
        self.receiver = DataReceiver(*self.limits)
        return 0

    cdef object starttls(self):
        if self.secure or not self.service.starttls:
            raise ReplyError("503 5.5.1 STARTTLS is not offered")
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
        return self.service.auth and (self.secure or self.service.auth_without_tls)

    cdef object auth(self, str argument):
        if not self.service.auth:
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
        raise ReplyError("501 5.5.2 this is not UTF-8") from None
    if not line.endswith("\r\n"):
        raise ReplyError("500 5.5.2 lines must end in CR LF")
    line = line[: len(line) - 2]
    if lenient:
        line = line.replace("\t", " ")
    if not line.isprintable() and syntax.find_control(line):
        raise ReplyError("500 5.5.2 control characters are not allowed")
    return line


cdef inline bint says(const char *line, const char *verb) noexcept:
    """Whether this is the verb of a line."""
    cdef size_t size = strlen(verb)
    return PyOS_strnicmp(line, verb, size) == 0 and (line[size] == 0 or line[size] == c" ")


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
