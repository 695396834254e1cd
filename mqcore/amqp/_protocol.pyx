"""AMQP 0-9-1 as a client speaks it, without any I/O: bytes in, events and frames out."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from ._channel cimport CLOSED, CLOSING, NO_CONTENT, OPEN, Channel, ChannelState, Delivery
from ._output cimport Insert, Output
from ._properties cimport find_headers, marked_size, put_marked
from ._unconfirmed cimport Unconfirmed
from ._wire cimport (ACK, BASIC, BODY, DELIVER, FRAME_END, FRAME_EXTRA, FRAME_HEAD, GET_OK, HEADER, HEARTBEAT, METHOD, NACK,
                     PUBLISH, RETURN, get16, get32, get64, put8, put16, put64, put_frame_head, put_method)

from . import errors
from . import events as event
from ._tables import encode_table
from .errors import ProtocolError, StateError
from .methods import decode, encode, name_of

cdef enum:
    LEAST_FRAME_MAX = 4096          # by the specification
    LARGE = 8192                    # octets of a body that is sent from where it is: to copy less costs less
    SHORT_STRING = 255
    CONFIRM_SIZE = 9                # tag, multiple
    PUBLISH_SIZE = 9                # class, method, a number that means nothing, two sizes of text, bits
    HEADER_SIZE = 12                # class, weight, size of the body

cdef bytes GREETING = b"AMQP\0\0\x09\x01"

cdef dict CAPABILITIES = {
    "publisher_confirms": True, "consumer_cancel_notify": True, "basic.nack": True, "connection.blocked": True,
    "authentication_failure_close": True,
}

# Replies that bring an event, which has the number of the channel and what stands in the reply.
cdef dict REPLIES = {
    "queue.declare-ok": event.QueueDeclared, "queue.delete-ok": event.QueueDeleted, "queue.purge-ok": event.QueuePurged,
    "exchange.declare-ok": event.ExchangeDeclared, "basic.qos-ok": event.QosSet, "basic.consume-ok": event.ConsumeStarted,
}


@cython.final
@cython.no_gc_clear
cdef class ClientProtocol:
    """The client's side of one connection.

    Send what `take_output` returns, from the beginning on, and after each turn in which something was said. Give it what
    arrived with `receive`, which returns what the broker said, as events; and when the connection broke, call `lost`. Requests
    are methods; those that the broker answers bring an event each, in their order on their channel. When `closed` is true, send
    the output and close the connection.

    What the broker sends that makes no sense ends the connection: it is told why, and the last event says it, too. Every
    publish has one outcome, `Outcome`, also when its channel or the connection ends.
    """

    def __cinit__(self, options not None):
        self.out = Output()
        self.events = []
        self.channels = {}
        self.mechanism = "PLAIN" if options.user else "EXTERNAL"
        self.login = f"\0{options.user}\0{options.password}".encode() if options.user else b""
        self.open = encode("connection.open", options.vhost, "", False)
        self.client = {**options.properties, "capabilities": CAPABILITIES}
        encode_table(self.client)  # raises for what cannot be said
        self.server = {}
        self.channel_max = options.channel_max
        self.frame_max = options.frame_max
        self.heartbeat = options.heartbeat
        self.max_body = options.max_body
        memcpy(self.out.room(8), <const char *>GREETING, 8)
        self.out.used = 8

    def __dealloc__(self):
        free(self.pending)

    @property
    def is_open(self):
        return self.state == OPENED

    @property
    def closed(self):
        return self.state == ENDED

    cpdef list receive(self, bytes data):
        """What the broker says, in order."""
        if data is None:
            raise TypeError("receive() needs bytes")
        return self.hear(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef list hear(self, const uint8_t *p, Py_ssize_t size):
        """As `receive`; the octets may be overwritten after that."""
        if self.receiving:
            raise RuntimeError("receive() is not to be called while it runs")
        cdef list events = self.events
        self.receiving = True
        try:
            self.feed(p, size)
        except ProtocolError as error:
            self.fail(error.code, error.text)
        except MemoryError:
            self.fail(errors.RESOURCE_ERROR, "this client has no memory left")
        finally:
            self.receiving = False
        events = self.events
        self.events = []
        return events

    def lost(self, str text not None):
        """The connection broke: the last events."""
        if self.state != ENDED:
            self.end(errors.CONNECTION_FORCED, text, "", False)
        cdef list events = self.events
        self.events = []
        return events

    cpdef bytes take_output(self):
        """What to send to the broker."""
        return b"".join(self.take_parts())

    cdef list take_parts(self):
        """Likewise, as buffers that follow each other: a large body is the one that was published."""
        self.write_acks()
        return self.out.take()

    cdef int write_acks(self) except -1:
        """One for all that were acked since the last time, where that can be said so."""
        cdef Channel channel
        for channel in self.channels.values():
            if channel.unsettled.acks and channel.state == OPEN and self.state == OPENED:
                channel.unsettled.write_acks(channel.number, self.out)
        return 0

    # Frames

    cdef int feed(self, const uint8_t *p, Py_ssize_t size) except -1:
        cdef Py_ssize_t taken
        while size > 0 and self.state != ENDED:
            if self.stage == IN_BODY and self.left:
                taken = min(size, self.left)
                self.last.add(p, taken)
                self.left -= taken
            elif self.stage == IN_BODY:
                self.end_body_frame(p[0])
                taken = 1
            else:
                taken = self.begin_frame(p, size)
            p += taken
            size -= taken
        return 0

    cdef Py_ssize_t begin_frame(self, const uint8_t *p, Py_ssize_t size) except -1:
        """Take a whole frame, or the head of one with a part of a body, or put aside what there is; returns how much."""
        cdef Py_ssize_t payload
        if self.used or size < FRAME_HEAD:
            return self.collect(p, size)
        payload = self.check_head(p)
        if p[0] == BODY:
            self.begin_body_frame(p)
            return FRAME_HEAD
        if size < payload + FRAME_EXTRA:
            return self.collect(p, size)
        self.frame(p, payload)
        return payload + FRAME_EXTRA

    cdef Py_ssize_t collect(self, const uint8_t *p, Py_ssize_t size) except -1:
        """Put aside what belongs to this frame; when it is whole, take it."""
        cdef Py_ssize_t need = FRAME_HEAD, taken, capacity
        cdef uint8_t *pending
        if self.used >= FRAME_HEAD:
            need = get32(self.pending + 3) + FRAME_EXTRA
        if need > self.capacity:
            capacity = max(need, 256)
            pending = <uint8_t *>realloc(self.pending, capacity)
            if pending == NULL:
                raise MemoryError
            self.pending = pending
            self.capacity = capacity
        taken = min(size, need - self.used)
        memcpy(self.pending + self.used, p, taken)
        self.used += taken
        if self.used < need:
            return taken
        if need == FRAME_HEAD:
            self.check_head(self.pending)
            if self.pending[0] == BODY:
                self.used = 0
                self.begin_body_frame(self.pending)
        else:
            self.used = 0
            self.frame(self.pending, need - FRAME_EXTRA)
        return taken

    cdef Py_ssize_t check_head(self, const uint8_t *p) except -1:
        """The size of its payload. Raises ProtocolError before anything is kept of what cannot be a frame."""
        cdef uint32_t size = get32(p + 3)
        if p[0] != METHOD and p[0] != HEADER and p[0] != BODY and p[0] != HEARTBEAT:
            begin = PyBytes_FromStringAndSize(<const char *>p, FRAME_HEAD)
            if self.state != STARTING:
                raise ProtocolError(errors.FRAME_ERROR, f"there are no frames of type {p[0]}")
            if begin.startswith(b"\x15\x03"):
                raise ProtocolError(errors.FRAME_ERROR, "this port speaks TLS")
            raise ProtocolError(errors.FRAME_ERROR, f"this is no broker of AMQP 0-9-1: the first that it says is {begin!r}")
        if size > self.frame_max - FRAME_EXTRA:
            raise ProtocolError(errors.FRAME_ERROR, f"a frame of {size + FRAME_EXTRA} octets; it may have {self.frame_max}")
        return size

    cdef int begin_body_frame(self, const uint8_t *p) except -1:
        cdef Channel channel = self.find(get16(p + 1))
        cdef Py_ssize_t size = get32(p + 3)
        if not channel.has_header:
            raise ProtocolError(errors.UNEXPECTED_FRAME, f"a body without a header on channel {channel.number}")
        if <uint64_t>size > channel.size - channel.have:
            raise ProtocolError(errors.FRAME_ERROR, f"a body with more octets than its header says on channel {channel.number}")
        self.left = size
        self.stage = IN_BODY
        return 0

    cdef int end_body_frame(self, uint8_t end) except -1:
        if end != FRAME_END:
            raise ProtocolError(errors.FRAME_ERROR, "a frame does not end where it should")
        self.stage = IN_FRAME
        return self.last.complete(self.events) if self.last.have == self.last.size else 0

    cdef int frame(self, const uint8_t *p, Py_ssize_t size) except -1:
        """A whole one, which is no part of a body."""
        cdef unsigned int number = get16(p + 1)
        cdef Channel channel
        if p[FRAME_HEAD + size] != FRAME_END:
            raise ProtocolError(errors.FRAME_ERROR, "a frame does not end where it should")
        if p[0] == METHOD:
            return self.method(number, p + FRAME_HEAD, size)
        if p[0] == HEADER:
            channel = self.find(number)
            channel.begin_body(p + FRAME_HEAD, size, self.max_body)
            return channel.complete(self.events) if channel.size == 0 else 0
        if number != 0 or size != 0:
            raise ProtocolError(errors.FRAME_ERROR, "a heartbeat that is none")
        return 0

    cdef Channel find(self, unsigned int number):
        """The channel of a frame. Raises ProtocolError."""
        if self.last is None or self.last.number != number or self.last.state == CLOSED:
            channel = self.channels.get(number)
            if channel is None:
                raise ProtocolError(errors.CHANNEL_ERROR, f"a frame on channel {number}, which is not open")
            self.last = channel
        return self.last

    # Methods

    cdef int method(self, unsigned int number, const uint8_t *p, Py_ssize_t size) except -1:
        cdef Channel channel
        if number == 0:
            name, arguments = decode(PyBytes_FromStringAndSize(<const char *>p, size))
            return self.connection_method(name, arguments)
        channel = self.find(number)
        if channel.content != NO_CONTENT:
            raise ProtocolError(errors.UNEXPECTED_FRAME, f"a method within a message on channel {number}")
        if size >= 4 and get16(p) == BASIC and self.message_method(channel, get16(p + 2), p + 4, size - 4):
            return 0
        name, arguments = decode(PyBytes_FromStringAndSize(<const char *>p, size))
        return self.channel_method(channel, name, arguments)

    cdef int message_method(self, Channel channel, unsigned int method, const uint8_t *p, Py_ssize_t size) except -1:
        """Those that come with each message; False if it is another one."""
        if method == DELIVER:
            channel.begin_delivery(p, size, False)
        elif method == ACK:
            self.confirm(channel, p, size, "ack")
        elif method == NACK:
            self.confirm(channel, p, size, "nack")
        elif method == RETURN:
            channel.begin_return(p, size)
        elif method == GET_OK:
            self.expect(channel, "basic.get")
            channel.begin_delivery(p, size, True)
        else:
            return False
        return True

    cdef int confirm(self, Channel channel, const uint8_t *p, Py_ssize_t size, str kind) except -1:
        if size != CONFIRM_SIZE:
            raise ProtocolError(errors.SYNTAX_ERROR, f"basic.{kind} with {size} octets of arguments")
        if channel.unconfirmed is None:
            text = f"basic.{kind} on channel {channel.number}, on which nothing was published"
            raise ProtocolError(errors.COMMAND_INVALID, text)
        return channel.unconfirmed.confirm(get64(p), p[8] & 1, kind, self.events)

    cdef int expect(self, Channel channel, str name) except -1:
        """Raises ProtocolError for a reply that nobody waits for."""
        if channel.state != CLOSING:
            if name not in channel.expected:
                raise ProtocolError(errors.COMMAND_INVALID, f"{name} on channel {channel.number}, for which nobody asked")
            channel.expected.remove(name)
        return 0

    cdef int connection_method(self, str name, list arguments) except -1:
        if name == "connection.close" or name == "connection.close-ok":
            self.closing_method(name, arguments)
        elif self.state == ENDING:
            pass
        elif name == "connection.start" and self.state == STARTING:
            self.start(arguments)
        elif name == "connection.tune" and self.state == TUNING:
            self.tune(arguments)
        elif name == "connection.open-ok" and self.state == LOGGED_IN:
            self.state = OPENED
            self.events.append(event.ConnectionOpened(self.server, self.channel_max, self.frame_max, self.heartbeat))
        elif name == "connection.blocked" and self.state == OPENED:
            self.events.append(event.Blocked(*arguments))
        elif name == "connection.unblocked" and self.state == OPENED:
            self.events.append(event.Unblocked())
        elif name == "connection.update-secret-ok" and self.state == OPENED:
            self.events.append(event.SecretUpdated())
        else:
            raise ProtocolError(errors.COMMAND_INVALID, f"{name} where it makes no sense")
        return 0

    cdef int start(self, list arguments) except -1:
        major, minor, server, mechanisms, _ = arguments
        if (major, minor) != (0, 9):
            raise ProtocolError(errors.NOT_ALLOWED, f"the broker speaks AMQP {major}-{minor}, not 0-9")
        if self.mechanism.encode() not in mechanisms.split():
            offered = mechanisms.decode("ascii", "replace")
            raise ProtocolError(errors.NOT_ALLOWED, f"the broker offers no login by {self.mechanism}, but {offered or 'none'}")
        self.server = server
        self.out.put_frame(0, encode("connection.start-ok", self.client, self.mechanism, self.login, "en_US"))
        self.login = b""
        self.state = TUNING
        return 0

    cdef int tune(self, list arguments) except -1:
        """The lesser of what both want; the broker's 0 is for no limit, and no wish of its own for heartbeats."""
        channel_max, frame_max, heartbeat = arguments
        if frame_max and frame_max < LEAST_FRAME_MAX:
            text = f"the broker wants frames of at most {frame_max} octets, less than AMQP allows"
            raise ProtocolError(errors.SYNTAX_ERROR, text)
        self.channel_max = min(self.channel_max, channel_max or self.channel_max)
        self.frame_max = min(self.frame_max, frame_max or self.frame_max)
        self.heartbeat = min(self.heartbeat, heartbeat or self.heartbeat)
        self.send(0, encode("connection.tune-ok", self.channel_max, self.frame_max, self.heartbeat))
        self.send(0, self.open)
        self.state = LOGGED_IN
        return 0

    cdef int closing_method(self, str name, list arguments) except -1:
        if name == "connection.close":
            code, text, class_id, method_id = arguments
            self.send(0, encode("connection.close-ok"))
            return self.end(code, text, name_of(class_id, method_id), True)
        if self.state != ENDING:
            raise ProtocolError(errors.COMMAND_INVALID, f"{name} where it makes no sense")
        return self.end(200, "closed", "", False)

    cdef int channel_method(self, Channel channel, str name, list arguments) except -1:
        number = channel.number
        if name == "channel.close" or channel.state >= CLOSING:
            self.closing_channel(channel, name, arguments)
        elif name == "channel.flow":
            self.send(number, encode("channel.flow-ok", *arguments))
            self.events.append(event.Flow(number, *arguments))
        elif name == "basic.cancel":
            if not arguments[1]:
                self.send(number, encode("basic.cancel-ok", arguments[0]))
            self.events.append(event.ConsumeCancelled(number, arguments[0], True))
        else:
            self.expect(channel, "basic.get" if name == "basic.get-empty" else name)
            if name == "channel.open-ok":
                channel.state = OPEN
                self.events.append(event.ChannelOpened(number))
            elif name == "basic.cancel-ok":
                self.events.append(event.ConsumeCancelled(number, arguments[0], False))
            elif name == "basic.get-empty":
                self.events.append(event.GetEmpty(number))
            elif name == "confirm.select-ok":
                channel.unconfirmed = channel.unconfirmed or Unconfirmed(number)
                self.events.append(event.ConfirmSelected(number))
            else:
                self.events.append(REPLIES[name](number, *arguments))
        return 0

    cdef int closing_channel(self, Channel channel, str name, list arguments) except -1:
        """Of what comes after channel.close was sent, nothing counts any more but that the broker closes it, too. If both did
        so at once, the number is free when the broker's channel.close-ok is there."""
        cdef ChannelState before = channel.state
        if name == "channel.close":
            code, text, class_id, method_id = arguments
            self.send(channel.number, encode("channel.close-ok"))
            if before != CLOSED:
                self.end_channel(channel, code, text, name_of(class_id, method_id), True)
            if before >= CLOSING:
                self.channels[channel.number] = channel
        elif name == "channel.close-ok" and before == CLOSED:
            del self.channels[channel.number]
        elif name == "channel.close-ok":
            self.end_channel(channel, 200, "closed", "", False)
        return 0

    cdef int end_channel(self, Channel channel, int code, str text, str method, bint by_broker) except -1:
        del self.channels[channel.number]
        channel.end(self.events)
        self.events.append(event.ChannelClosed(channel.number, code, text, method, by_broker))
        return 0

    cdef int end(self, int code, str text, str method, bint by_broker) except -1:
        cdef Channel channel
        self.state = ENDED
        for channel in self.channels.values():
            channel.end(self.events)
        self.channels = {}
        self.events.append(event.ConnectionClosed(code, text, method, by_broker))
        return 0

    cdef int fail(self, int code, str text) except -1:
        """It was no fault of ours: the broker is told, and not waited for."""
        if self.state != STARTING:  # else it might be no broker
            self.send(0, encode("connection.close", code, text[:200].encode("ascii", "replace").decode(), 0, 0))
        return self.end(code, text, "", False)

    # Requests

    cdef Channel opened(self, unsigned int number):
        """Raises StateError."""
        cdef Channel channel = self.channels.get(number)
        if self.state != OPENED or channel is None or channel.state != OPEN:
            raise StateError(f"channel {number} is not open")
        return channel

    cdef int request(self, unsigned int number, str reply, bytes payload) except -1:
        cdef Channel channel = self.opened(number)
        self.send(number, payload)
        channel.expected.append(reply)
        return 0

    cdef int send(self, unsigned int number, bytes payload) except -1:
        if len(payload) > self.frame_max - FRAME_EXTRA:
            raise ValueError(f"this needs a frame of {len(payload) + FRAME_EXTRA} octets; it may have {self.frame_max}")
        return self.out.put_frame(number, payload)

    def send_heartbeat(self):
        """Say that this side is there."""
        cdef uint8_t *p = self.out.room(FRAME_EXTRA)
        put8(put_frame_head(p, HEARTBEAT, 0, 0), FRAME_END)
        self.out.used += FRAME_EXTRA

    def close(self, int code=200, str text not None=""):
        """Before anything was agreed, it is over at once."""
        if self.state == STARTING:
            self.end(code, text or "closed", "", False)
        elif self.state < ENDING:
            self.write_acks()
            self.send(0, encode("connection.close", code, text, 0, 0))
            self.state = ENDING

    def update_secret(self, str secret not None, str reason not None):
        """Log in anew, with a token that lasts longer."""
        if self.state != OPENED:
            raise StateError("the connection is not open")
        self.send(0, encode("connection.update-secret", secret.encode(), reason))

    def open_channel(self):
        """Its number."""
        if self.state != OPENED:
            raise StateError("the connection is not open")
        if len(self.channels) == self.channel_max:
            raise StateError(f"{self.channel_max} channels are open; the broker allows no more")
        cdef unsigned int number = self.last_number
        while True:
            number = number % self.channel_max + 1
            if number not in self.channels:
                break
        self.send(number, encode("channel.open", ""))
        cdef Channel channel = Channel(number)
        channel.expected.append("channel.open-ok")
        self.channels[number] = channel
        self.last_number = number
        return number

    def close_channel(self, unsigned int channel, int code=200, str text not None=""):
        """Settle its deliveries before."""
        cdef Channel open_channel = self.opened(channel)
        if open_channel.unsettled.acks:
            open_channel.unsettled.write_acks(channel, self.out)
        self.send(channel, encode("channel.close", code, text, 0, 0))
        open_channel.state = CLOSING

    def declare_queue(self, unsigned int channel, str queue not None, *, bint passive=False, bint durable=True,
                      bint exclusive=False, bint auto_delete=False, arguments=None):
        """Passive: only whether it is there. An empty name: the broker gives it one."""
        self.request(channel, "queue.declare-ok", encode(
            "queue.declare", 0, queue, passive, durable, exclusive, auto_delete, False, arguments or {}))

    def delete_queue(self, unsigned int channel, str queue not None, *, bint if_unused=False, bint if_empty=False):
        self.request(channel, "queue.delete-ok", encode("queue.delete", 0, queue, if_unused, if_empty, False))

    def purge_queue(self, unsigned int channel, str queue not None):
        self.request(channel, "queue.purge-ok", encode("queue.purge", 0, queue, False))

    def check_exchange(self, unsigned int channel, str exchange not None):
        """Whether it is there; else the broker closes the channel."""
        self.request(channel, "exchange.declare-ok", encode(
            "exchange.declare", 0, exchange, "", True, False, False, False, False, {}))

    def set_qos(self, unsigned int channel, int prefetch):
        """How many deliveries each consumer that begins from now on may have unsettled; 0: any number."""
        self.request(channel, "basic.qos-ok", encode("basic.qos", 0, prefetch, False))

    def consume(self, unsigned int channel, str queue not None, str consumer_tag not None="", *, bint exclusive=False,
                arguments=None):
        self.request(channel, "basic.consume-ok", encode(
            "basic.consume", 0, queue, consumer_tag, False, False, exclusive, False, arguments or {}))

    def cancel(self, unsigned int channel, str consumer_tag not None):
        """Deliveries may come until the answer does."""
        self.request(channel, "basic.cancel-ok", encode("basic.cancel", consumer_tag, False))

    def get(self, unsigned int channel, str queue not None):
        """One message, as a Delivery, or GetEmpty."""
        self.request(channel, "basic.get", encode("basic.get", 0, queue, False))

    def select_confirm(self, unsigned int channel):
        """Needed before `publish`."""
        self.request(channel, "confirm.select-ok", encode("confirm.select", False))

    # What is said of each message

    cpdef uint64_t publish(self, unsigned int channel, str exchange, str routing_key, bytes properties, bytes body,
                           bint mandatory=True) except 0:
        """Returns the tag that its Outcome will have. `properties`: of `encode_properties`. Not mandatory: what can be routed
        nowhere is dropped by the broker, and counts as "ack"."""
        cdef Channel to = self.opened(channel)
        if exchange is None or routing_key is None or properties is None or body is None:
            raise TypeError("publish() needs texts and bytes")
        if to.unconfirmed is None:
            raise StateError(f"channel {channel} is not in confirm mode")
        cdef Py_ssize_t exchange_size, key_size, size = PyBytes_GET_SIZE(properties), left = PyBytes_GET_SIZE(body), part
        cdef const char *exchange_text = PyUnicode_AsUTF8AndSize(exchange, &exchange_size)
        cdef const char *key_text = PyUnicode_AsUTF8AndSize(routing_key, &key_size)
        if exchange_size > SHORT_STRING or key_size > SHORT_STRING:
            raise ValueError("an exchange or a routing key has more than 255 octets")
        cdef const uint8_t *fields = <const uint8_t *>PyBytes_AS_STRING(properties)
        cdef const uint8_t *content = <const uint8_t *>PyBytes_AS_STRING(body)
        cdef Py_ssize_t headers = find_headers(fields, size), most = self.frame_max - FRAME_EXTRA
        if headers < 0:
            raise ValueError("these are no properties")
        cdef Py_ssize_t header_size = HEADER_SIZE + (marked_size(fields, size) if mandatory else size)
        if header_size > most:
            raise ValueError(f"properties of {header_size} octets; the broker allows {most}")
        cdef bint is_large = left >= LARGE
        cdef list inserts = inserts_of(body, most) if is_large else None
        cdef Py_ssize_t number = 0
        to.unconfirmed.make_room()
        cdef Py_ssize_t copied = 0 if is_large else left
        cdef uint8_t *begin = self.out.room(
            PUBLISH_SIZE + exchange_size + key_size + header_size + copied + FRAME_EXTRA * (3 + left // most))
        if is_large:
            self.out.inserts += inserts
        # From here on, nothing is made.
        cdef uint64_t tag = to.unconfirmed.add()
        cdef uint8_t *p = put_frame_head(begin, METHOD, channel, PUBLISH_SIZE + exchange_size + key_size)
        p = put_text(put16(put_method(p, BASIC, PUBLISH), 0), exchange_text, exchange_size)
        p = put8(put8(put_text(p, key_text, key_size), mandatory), FRAME_END)
        p = put_frame_head(p, HEADER, channel, header_size)
        p = put64(put16(put16(p, BASIC), 0), left)
        if mandatory:
            p = put_marked(p, fields, size, headers, tag)
        else:
            memcpy(p, fields, size)
            p += size
        p = put8(p, FRAME_END)
        while left > 0:
            part = min(left, most)
            p = put_frame_head(p, BODY, channel, part)
            if is_large:
                (<Insert>inserts[number]).at = self.out.used + (p - begin)
                number += 1
            else:
                memcpy(p, content, part)
                p += part
            p = put8(p, FRAME_END)
            content += part
            left -= part
        self.out.used += p - begin
        return tag

    cpdef bint ack(self, Delivery delivery) except -1:
        """It is done. False if it was settled before, or its channel is gone: then the broker gives it to somebody again.

        Sent with the output; acks of one turn are gathered."""
        if delivery is None:
            raise TypeError("ack() needs a Delivery")
        cdef Channel channel = delivery.owner
        if not self.is_mine(channel):
            return False
        return channel.unsettled.ack(delivery.slot, delivery.tag)

    cdef bint is_mine(self, Channel channel) except -1:
        """Whether a delivery's channel is one of this connection, and open."""
        return (channel is not None and channel.state == OPEN and self.state == OPENED
                and self.channels.get(channel.number) is channel)

    def nack(self, Delivery delivery not None, *, bint requeue=True):
        """It goes back to the queue, or else where the queue has its dead letters go. False as for `ack`."""
        return self.settle(delivery, "basic.nack", (False, requeue))

    def reject(self, Delivery delivery not None, *, bint requeue=True):
        """As `nack`; quorum queues of RabbitMQ 4.3 count it as a failed attempt."""
        return self.settle(delivery, "basic.reject", (requeue,))

    cdef bint settle(self, Delivery delivery, str name, tuple how) except -1:
        cdef Channel channel = delivery.owner
        if not self.is_mine(channel):
            return False
        cdef bytes payload = encode(name, delivery.tag, *how)
        self.out.room(len(payload) + FRAME_EXTRA)
        return channel.unsettled.remove(delivery.slot, delivery.tag) and self.send(channel.number, payload) == 0

    def unsettled(self, unsigned int channel):
        """How many deliveries of this channel are."""
        return self.opened(channel).unsettled.count

    def unconfirmed(self, unsigned int channel):
        """How many publishes of this channel have no outcome yet."""
        cdef Channel it = self.opened(channel)
        return 0 if it.unconfirmed is None else it.unconfirmed.count


cdef list inserts_of(bytes body, Py_ssize_t most):
    """Its parts, of so many octets at most."""
    cdef list made = []
    cdef Py_ssize_t begin
    cdef Insert insert
    for begin in range(0, len(body), most):
        insert = Insert.__new__(Insert)
        insert.body = body
        insert.begin = begin
        insert.size = min(most, len(body) - begin)
        made.append(insert)
    return made


cdef uint8_t *put_text(uint8_t *p, const char *text, Py_ssize_t size) noexcept:
    memcpy(put8(p, <unsigned int>size), text, size)
    return p + 1 + size
