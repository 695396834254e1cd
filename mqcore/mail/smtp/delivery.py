"""Some mails, on their way to the next server together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import FAIL, Hook, Outcome
from ...smtp.client import Terms
from ...smtp.content import make_content
from ...smtp.replies import Reply
from ...smtp.syntax import MAIL_DSN, RCPT_DSN, is_safe, write_dsn
from .._mail import Mail, bytes_of, put_in_spool
from .._spool import Spool
from ..errors import SinkError
from ..verdicts import CANCELLED, DISCARDED, Rejection, Verdict
from .outgoing import Lost, NoneFree, Unreachable

if TYPE_CHECKING:
    from .outgoing import Client
    from .sender import Sender

NOBODY = "5.1.3 it is not known to whom to send this; a plugin must set message.recipient"
NO_SENDER = "5.1.7 it is not known from whom this is; a plugin must set message.envelope, to '' for a bounce"
LOOPS = Reply(
    "connect", None, "this mail was here before, and does not wait for a connection to the next server; try again later"
)
DONE = Reply("message", 250, "delivered by an earlier run")

log = logging.getLogger(__name__)


class RecipientJob(NamedTuple):
    """A mail for one of its recipients, as it is when plugins are done with it."""

    mail: Mail
    recipient: str
    envelope: str
    mime: Hashable
    """Equal for mails of the same bytes."""
    dsn: str
    """What MAIL says of delivery status notifications."""


class Delivery:
    """The mails of one transaction of a client, or one mail from a file. What goes to several recipients, and is the same,
    is sent once. See `Sender`."""

    def __init__(self, sender: Sender, mails: Sequence[Mail], begun: Client | None = None) -> None:
        """`begun`: the connection on which this one mail is being sent already."""
        self._sender = sender
        self._begun = begun
        self._mails = mails
        self._failed: set[Mail] = set()
        self._replies: dict[Mail, dict[str, Reply]] = {}
        self._is_finished = False
        self._away: str | None = None
        """Why there is no server to ask, for mails that wait in a queue until there is."""
        self._is_busy = False
        """Whether the server is being talked to, or what it said is being noted."""
        self._task: asyncio.Task[list[Verdict]] | None = None

    @property
    def _is_delivered(self) -> bool:
        """Whether the server has any of it."""
        return any(reply.is_delivered for reply in self._all_replies())

    def _all_replies(self) -> Iterable[Reply]:
        return (reply for replies in self._replies.values() for reply in replies.values())

    def cancel(self) -> None:
        """End it, unless the server is being talked to, or has a part of it already and the client must learn of that."""
        if self._task is not None and not self._is_busy and (self._sender.pauses or not self._is_delivered):
            self._task.cancel()

    async def run(self) -> list[Verdict]:
        """Also when it is cancelled it says what became of the mails."""
        self._task = asyncio.current_task()
        try:
            if self._begun is None:
                await self._prepare()
            await self._send(self._make_jobs())
            self._is_finished = True
        except Unreachable as error:
            if self._sender.from_queue and not error.final:
                self._away = str(error)
            else:
                self._sender.gateway.fail(f"cannot reach {self._sender.sink.url}: {error}")
        except asyncio.CancelledError:
            _stay_alive()
        self._conclude()
        try:
            await self._note()
        except asyncio.CancelledError:
            _stay_alive()
        return [self._verdict(mail) for mail in self._mails]

    @property
    def sent(self) -> Sequence[Mail]:
        """The mails of which the server, or an earlier run, knows."""
        return list(self._replies) if self._is_finished else []

    # Before

    def _good(self) -> list[Mail]:
        return [mail for mail in self._mails if not (mail in self._failed or mail.discarded or mail.rejection is not None)]

    async def _prepare(self) -> None:
        """Run `mq_smtp_out_data`."""
        if self._sender.is_stopping:
            raise asyncio.CancelledError
        outcomes = await run_all(self._sender.data_hook, self._mails, Spool(self._sender.gateway.memory))
        self._failed = {mail for mail, outcome in zip(self._mails, outcomes, strict=True) if outcome is FAIL}
        for mail in self._good():
            _check(mail, raw=self._sender.sink.lenient)

    def _make_jobs(self) -> list[RecipientJob]:
        """What to send: nothing if the client is to come again, as far as is known now."""
        if self._sender.together and any(mail in self._failed or _is_put_off(mail) for mail in self._mails):
            return []
        jobs = []
        for mail in self._mails if self._begun is not None else self._good():
            have = self._sender.sink.recipients_of(mail.origin.id)
            self._replies[mail] = {recipient: DONE for recipient in mail.recipients if recipient in have}
            dsn = write_dsn(MAIL_DSN, mail.json.get("dsn"))
            # What has begun is for those it began with, whatever a plugin does to the mail meanwhile.
            for recipient in dict.fromkeys(mail.recipients if self._begun is None else self._begun.recipients):
                if recipient not in have:
                    jobs.append(RecipientJob(mail, recipient, mail.envelope or "", bytes_of(mail), dsn))
        return jobs

    # Sending

    async def _send(self, jobs: Sequence[RecipientJob]) -> None:
        for pause in (*self._sender.pauses, None):
            for group in _group(jobs):
                await self._send_group(group)
                if not self._is_delivered and any(map(self._sender.blocks, self._all_replies())):
                    return
            jobs = [job for job in jobs if self._replies[job.mail][job.recipient].is_temporary]
            if not jobs or pause is None:
                return
            if self._sender.is_stopping:
                raise asyncio.CancelledError
            await asyncio.sleep(pause)

    async def _send_group(self, group: Sequence[RecipientJob]) -> None:
        content = make_content(group[0].mail.mime)
        while group:
            recipients = list(dict.fromkeys(job.recipient for job in group))
            replies = await self._transact(group, recipients, content)
            self._take(group, replies)  # those of a transaction that came to no end too
            if not any(reply.is_delivered for reply in replies.values()):
                break
            group = [job for job in group if replies[job.recipient].is_too_many]

    def _take(self, group: Iterable[RecipientJob], replies: Mapping[str, Reply]) -> None:
        for job in group:
            if job.recipient in replies:
                self._replies[job.mail][job.recipient] = replies[job.recipient]

    async def _transact(self, group: Sequence[RecipientJob], recipients: list[str], content: bytes) -> Mapping[str, Reply]:
        fresh = False
        origin = group[0].mail.origin  # all are of one transaction
        waits = bool(self._sender.pauses) or not origin.loops  # else what goes round would wait for itself
        blocks = None if self._is_delivered or not self._sender.together else self._sender.blocks
        terms = self._make_terms(group)
        while True:
            try:
                async with self._client(fresh=fresh, waits=waits, hops=origin.hops) as (client, has_begun):
                    self._is_busy = True
                    try:
                        if has_begun:
                            return await client.go_on()
                        return await client.send(group[0].envelope, recipients, content, blocks=blocks, terms=terms)
                    except Lost as lost:
                        if client.is_in_doubt or not client.is_used or len(client.replies) == len(recipients):
                            return dict.fromkeys(recipients, lost.reply) | client.replies
                        fresh = True  # the server had enough of that connection, which is no fault of the mail's
                    finally:
                        self._is_busy = False
                        self._count(group, client)
            except NoneFree:
                return dict.fromkeys(recipients, LOOPS)
            except Unreachable as error:
                if self._sender.pauses or (self._sender.from_queue and (error.final or not self._is_delivered)):
                    raise
                log.warning("cannot reach %s: %s", self._sender.sink.url, error)
                return dict.fromkeys(recipients, Reply("connect", None, f"cannot reach the next server: {error}"))

    @contextlib.asynccontextmanager
    async def _client(self, **how: Any) -> AsyncIterator[tuple[Client, bool]]:
        """A connection, and whether the transaction has begun on it."""
        begun, self._begun = self._begun, None
        if begun is not None:
            with self._sender.pool.begun(begun):
                yield begun, True
        else:
            async with self._sender.pool.client(**how) as client:
                yield client, False

    def _make_terms(self, group: Sequence[RecipientJob]) -> Terms:
        """How the client, if there was one, wants it to be sent."""
        origin, lenient = group[0].mail.origin, self._sender.sink.lenient
        utf8: bool | None = origin.utf8 or None
        if lenient and origin.utf8 is False and all(_is_as_given(job) for job in group):
            utf8 = False
        rcpt_dsn = {job.recipient: write_dsn(RCPT_DSN, job.mail.json.get("dsn")) for job in group}
        return Terms(utf8, lenient, group[0].dsn, rcpt_dsn, find_forwarded(group[0].mail))

    def _count(self, group: Sequence[RecipientJob], client: Client) -> None:
        """What became of a transaction that is over, or was broken off."""
        counts, replies = self._sender.counts, client.replies
        self._sender.replies.update(reply.code for reply in replies.values())
        self._take(group, replies)  # also if it was broken off: some of the recipients may have the mail for certain
        if client.is_in_doubt:
            counts.in_doubt += len({job.mail for job in group if job.recipient not in replies})
        if client.is_clear:
            delivered = {job.mail for job in group if (reply := replies.get(job.recipient)) and reply.is_delivered}
            counts.in_clear += len(delivered)

    # After

    def _conclude(self) -> None:
        """Say in each mail what became of it."""
        for mail, replies in self._replies.items():
            mail.results = [_as_dict(recipient, reply) for recipient, reply in replies.items()]
            mail.json["results"] = [result.copy() for result in mail.results]
            refused = [reply for reply in replies.values() if not reply.is_positive]
            if refused:
                mail.reject(*_as_rejection(next((reply for reply in refused if reply.is_final), refused[0])))

    async def _note(self) -> None:
        """Let the sink remember which mails all their recipients have, and which only some, or not yet the others."""
        whole, partly = [], {}
        for mail, replies in self._replies.items():
            delivered = [recipient for recipient, reply in replies.items() if reply.is_delivered]
            if self._is_finished and mail.rejection is None:
                whole.append(mail)
            elif delivered:
                partly[mail] = delivered
        noted = False
        self._is_busy = True
        try:
            await self._sender.sink.note(whole, partly)
            noted = True
        except SinkError as error:
            self._sender.gateway.fail(str(error))
        finally:
            self._is_busy = False
            if not noted:  # the next run does not know of it, and sends it again
                self._is_finished = False
                self._sender.counts.in_doubt += len(whole) + len(partly)
            elif not self._is_finished and not self._sender.pauses:  # as does the client
                self._sender.counts.in_doubt += len(partly)

    def _verdict(self, mail: Mail) -> Verdict:
        if self._away is not None:
            return Verdict.deferred(451, f"4.4.1 cannot reach the next server: {self._away}")._replace(unavailable=True)
        if not self._is_finished:
            return CANCELLED
        if mail in self._failed:
            return Verdict.failed(mail.error)
        if mail.discarded:
            return DISCARDED
        success = next((reply for reply in self._replies.get(mail, {}).values() if reply.is_delivered), None)
        if mail.rejection is not None:
            verdict = Verdict.refused(mail.rejection)
            return verdict if success is None else verdict._replace(partly=True)
        return CANCELLED if success is None else Verdict.accepted(f"passed on: {success}")


def _stay_alive() -> None:
    """The task was cancelled; it ends in good order now."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


async def run_all(hook: Hook, mails: Sequence[Mail], shared: Spool | None = None) -> list[Outcome]:
    """All at once. One, as is usual, needs no task of its own."""
    if len(mails) == 1:
        return [await hook(mails[0])]

    async def run(mail: Mail) -> Outcome:
        outcome = await hook(mail)
        if shared is not None:
            put_in_spool(mail, shared)
        return outcome

    return await asyncio.gather(*map(run, mails))


def _check(mail: Mail, *, raw: bool) -> None:
    """Reject what cannot be sent at all. What plugins put into `json` may be anything. With `raw`, addresses may have bytes
    that are no UTF-8."""
    if not isinstance(mail.recipients, list):
        mail.reject(550, "5.1.0 what a plugin left as the recipients of this mail are none")
    elif not mail.recipients:
        log.warning("mail %s is not sent: %s", mail.origin.id, NOBODY)
        mail.reject(550, NOBODY)
    elif mail.envelope is None:
        log.warning("mail %s is not sent: %s", mail.origin.id, NO_SENDER)
        mail.reject(550, NO_SENDER)
    else:
        for address in (*mail.recipients, *filter(None, [mail.envelope])):
            if not (isinstance(address, str) and is_safe(address, raw=raw)):
                mail.reject(553, f"5.1.3 this is no address: {address!a}")


def find_forwarded(mail: Mail) -> Mapping[str, str | None]:
    """What the next server may know of the client that the mail is from."""
    client = mail.connection
    if client is None:
        return {}
    if isinstance(client.forwarded, Mapping):
        return client.forwarded
    return {"name": None, "addr": client.peer, "helo": client.helo} if client.peer else {}


def _is_as_given(job: RecipientJob) -> bool:
    """Whether the addresses are ASCII, or those that the client gave without a word about it."""
    origin = job.mail.origin
    return (job.envelope.isascii() or job.envelope == origin.envelope) and (
        job.recipient.isascii() or job.recipient == origin.recipient
    )


def _is_put_off(mail: Mail) -> bool:
    return mail.rejection is not None and mail.rejection.code < 500


def _as_rejection(reply: Reply) -> Rejection:
    """For whom the mail came from. Not with 421, which is about our connection and not about theirs."""
    if reply is LOOPS:
        return Rejection(451, f"4.4.6 {reply.text}")
    if reply.code is None:
        who = "" if reply.state == "connect" else "the next server failed: "
        return Rejection(451, f"4.4.2 {who}{reply.text}")
    return Rejection(reply.code if 400 <= reply.code <= 599 and reply.code != 421 else 451, reply.text)


def _as_dict(recipient: str, reply: Reply) -> dict[str, Any]:
    return {"recipient": recipient, "state": reply.state, "code": reply.code, "description": reply.text}


def _group(jobs: Iterable[RecipientJob]) -> Iterable[list[RecipientJob]]:
    """Those together that are sent in one transaction: all but the recipient is the same."""
    groups: dict[tuple[str, Hashable, str], list[RecipientJob]] = defaultdict(list)
    for job in jobs:
        groups[job.envelope, job.mime, job.dsn].append(job)
    return groups.values()
