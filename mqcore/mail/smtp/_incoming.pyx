"""A transaction of a client as it comes in: to whom, the message, and the mails that it becomes."""

import copy

cimport cython
from cpython.time cimport time as wall_time
from .._mail cimport Connection, Mail, address_in, new_mail
from .._names cimport Names
from .._origin cimport new_origin
from ...smtp._data cimport DataReceiver


cdef frozenset UNCHANGING = frozenset((str, int, float, bool, bytes))


@cython.final
cdef class Incoming:
    """Of one connection, for one transaction after the other: `begin` is MAIL, `add` a RCPT that was taken, `take` the message
    itself."""

    def __cinit__(self):
        self.received = b""

    cdef int begin(self) except -1:
        self.recipients = []
        self.dropped = None
        self.drops = False
        self.dsn = None
        return 0

    cdef int add(self, recipient, dict dsn) except -1:
        """`dsn`: what the client says of notifications to this one."""
        self.recipients.append(recipient)
        if dsn:
            if self.dsn is None:
                self.dsn = {}
            self.dsn.setdefault(recipient, dsn)
        return 0

    cdef int drop(self, recipient) except -1:
        """A plugin discards what comes for this one."""
        if self.dropped is None:
            self.dropped = set()
        self.dropped.add(recipient)
        return 0

    cdef bint is_for_nobody(self) except -1:
        return self.drops or self.dropped is not None and self.dropped.issuperset(self.recipients)

    cdef int name_each_once(self) except -1:
        """Of several recipients: whoever is named twice gets one mail, and some maybe none."""
        self.named = None
        if len(self.recipients) <= 1:
            return 0
        self.named = self.recipients
        self.recipients = []
        for recipient in dict.fromkeys(self.named):
            if self.dropped is None or recipient not in self.dropped:
                self.recipients.append(recipient)
        if not self.recipients:
            self.recipients = list(self.dropped)
        return 0

    cdef int take(self, DataReceiver receiver, Names names) except -1:
        """What is known of the message, but for its bytes."""
        self.loops = receiver.loops
        self.hops = receiver.hops
        self.received_at = wall_time()
        self.number = names.take(len(self.recipients))
        self.id = names.name(self.number)
        return 0

    cdef list make_mails(self, Mail message, Connection connection, Names names, bint traced, bint utf8):
        """One for each recipient, with all that the plugins know so far."""
        known = message.known
        known.pop("recipients", None)  # each of them has one
        envelope = address_in(known, "envelope") or ""
        cdef list mails = []
        cdef bytes mime = message.whole()  # which they share
        cdef unsigned long long number = self.number
        for recipient in self.recipients:
            id = names.name(number) if mails else self.id
            origin = new_origin(self.received, id, number, envelope, self.received_at, recipient, False, traced, self.loops,
                                self.hops, utf8)
            number += 1
            json = copied(known) if mails else known.copy()
            json["recipient"] = recipient
            if self.dsn is not None and recipient in self.dsn:
                json["dsn"] = {**json.get("dsn", {}), **self.dsn[recipient]}
            mails.append(new_mail(mime, json, connection, origin))
        return mails


cdef object copied(known):
    """A copy of what is known, which shares nothing that can be changed."""
    if type(known) is not dict:
        return copy.deepcopy(known)
    for value in (<dict>known).values():
        if value is not None and type(value) not in UNCHANGING:
            return copy.deepcopy(known)
    return (<dict>known).copy()
