"""The gateway where sources, sinks, plugins or whoever runs it do what they should not: all is settled, nothing crashes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import pytest
from sending_tools import ListSource
from smtp_tools import ListSink, run

import mqcore
from mqcore.mail import CANCELLED, FailedSink, Gateway, Mail, NullSink, Sink, Source, Store, Transaction, Verdict
from mqcore.mail.maildir.lock import make
from mqcore.mail.maildir.sink import MaildirSink
from mqcore.mail.maildir.source import MaildirSource
from mqcore.mail.smtp._connection import SmtpConnection, SmtpTransaction
from mqcore.mail.smtp.sink import SmtpSink
from mqcore.mail.threads import in_thread
from mqcore.mail.verdicts import Kind


class Job(Transaction):
    def __init__(self, *texts: bytes) -> None:
        super().__init__([Mail(text, envelope="a@example.org") for text in texts])
        self.verdicts: list[Verdict] | None = None

    def settle(self, verdicts):
        assert self.verdicts is None
        self.verdicts = verdicts


class Jobs(Source):
    url = "jobs:"
    has_waiting_client = True

    def __init__(self, *jobs: Transaction) -> None:
        self.jobs = jobs

    async def run(self, gateway):
        gateway.offer(self.jobs)

    def stop(self):
        pass


@contextlib.contextmanager
def dispatcher(**hooks):
    with mqcore.Plugins() as plugins:
        for name, hook in hooks.items():
            plugins.add(name, type("Plugin", (), {"mq_smtp_in_message": staticmethod(hook)})())
        with mqcore.Dispatcher(plugins) as made:
            yield made


async def ended(gateway: Gateway):
    async with asyncio.timeout(20):
        return await gateway.run()


def kinds(*jobs: Job) -> list[list[Kind]]:
    return [[verdict.kind for verdict in job.verdicts] for job in jobs]


# What is not whole, or not for everybody


def test_a_transaction_that_is_not_whole():
    transaction = Transaction.__new__(Transaction)
    for wrong in ([], [1], [None], None):
        with pytest.raises((ValueError, TypeError)):
            transaction.__init__(wrong)
    with pytest.raises(RuntimeError, match="has its mails already"):
        Job(b"x").__init__(b"y")

    @run
    async def offered():
        with dispatcher() as made, pytest.raises(TypeError, match="offered for the first time"):
            Gateway(made, Jobs(), NullSink("")).offer([transaction])

    offered()


def test_what_the_gateway_calls_is_no_trap():
    for transaction in (SmtpTransaction.__new__(SmtpTransaction), SmtpTransaction([Mail(b"x")])):
        with pytest.raises(RuntimeError):
            transaction.settle([])
        with pytest.raises((RuntimeError, TypeError)):
            transaction.settle(None)
    with pytest.raises((TypeError, AttributeError)):
        SmtpConnection(None)


@pytest.mark.parametrize("wrong", [(250, "ok"), ("550", "no"), (550, "two\nlines"), (550,), 550])
def test_a_rejection_is_checked(wrong):
    mail = Mail(b"x")
    with pytest.raises((TypeError, ValueError)):
        mail.rejection = wrong
    mail.rejection = (550, "no")
    assert mail.rejection.code == 550
    mail.rejection = None
    with pytest.raises(AttributeError):
        mail.origin = None


@pytest.mark.parametrize(("make", "code"), [(Verdict.rejected, 450), (Verdict.deferred, 250), (Verdict.deferred, 550)])
def test_a_verdict_means_what_its_code_does(make, code):
    with pytest.raises(ValueError, match="has a code from"):
        make(code, "text")
    with pytest.raises(TypeError):
        make(str(code), "text")


@run
async def test_at_least_one_in_flight():
    with dispatcher() as made, pytest.raises(ValueError, match="at least 1"):
        Gateway(made, Jobs(), NullSink(""), max_in_flight=0)


# Steps


@run
async def test_a_mail_that_is_in_a_step_elsewhere():
    """The others of its batch get theirs."""

    def hold(context, message):
        if message.mime == b"elsewhere":
            return mqcore.HOLD
        return None

    jobs = [Job(b"one"), Job(b"elsewhere"), Job(b"two")]
    with dispatcher(hold=hold) as made:
        assert made.hook("mq_smtp_in_message").run(jobs[1].mails[0]) is None
        report = await ended(Gateway(made, Jobs(*jobs), sink := ListSink()))
        made.cancel(jobs[1].mails[0])
    assert kinds(*jobs) == [[Kind.ACCEPTED], [Kind.FAILED], [Kind.ACCEPTED]]
    assert [mail.mime for mail in sink.mails] == [b"one", b"two"] and report.counts.failed == 1


# Sinks


class OwnSink(Sink):
    url = "own:"

    async def deliver(self, mails):
        raise asyncio.CancelledError  # as of a future of its own


@run
async def test_a_sink_that_is_cancelled_by_itself():
    with dispatcher() as made:
        report = await ended(Gateway(made, Jobs(job := Job(b"x")), OwnSink()))
    assert kinds(job) == [[Kind.IN_DOUBT]] and report.counts.in_doubt == 1


@run
async def test_a_sink_for_which_there_is_no_memory():
    class Big(OwnSink):
        async def deliver(self, mails):
            raise MemoryError

    with dispatcher() as made:
        report = await ended(Gateway(made, Jobs(job := Job(b"x")), Big()))
    assert job.verdicts[0].reply[:1] == (452,) and report.error is None


@run
async def test_cut_before_the_sink_was_called():
    class Never(OwnSink):
        async def deliver(self, mails):
            raise AssertionError

    class Cut(Jobs):
        async def run(self, gateway):
            await super().run(gateway)
            gateway._cut()  # the task that delivers has not begun

    with dispatcher() as made:
        report = await ended(Gateway(made, Cut(job := Job(b"x")), Never()))
    assert kinds(job) == [[Kind.FAILED]] and report.counts.unfinished == 1


class SoonSink(OwnSink):
    """Takes each mail at once, and answers what `says` makes of it."""

    delivers_soon = True

    def __init__(self, says) -> None:
        self.says = says

    def deliver_soon(self, mails, token, answer):
        return self.says(lambda *how: answer(token, *how))


def later(*how):
    return lambda answer: asyncio.get_running_loop().call_soon(answer, *how) is not None


async def defers(mails):
    return [Verdict.deferred(450, "4.2.1 later") for _ in mails]


def breaks(answer):
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (later(Verdict.accepted()), Kind.ACCEPTED),
        (lambda answer: answer(Verdict.accepted()) is None, Kind.ACCEPTED),
        (lambda answer: Verdict.accepted(), Kind.ACCEPTED),
        (lambda answer: answer(Verdict.accepted()) or Verdict.rejected(550, "5.1.1 no"), Kind.ACCEPTED),
        (lambda answer: answer(Verdict.accepted()) or breaks(answer), Kind.ACCEPTED),
        (later(Verdict.rejected(550, "5.1.1 no")), Kind.REJECTED),
        (later(None, defers), Kind.DEFERRED),
        (lambda answer: False, Kind.IN_DOUBT),  # so `deliver` was called
        (breaks, Kind.FAILED),
    ],
    ids=["later", "within", "at once", "within and at once", "within and a bug", "refused", "goes on", "not now", "a bug"],
)
@run
async def test_a_sink_that_takes_mails_at_once(says, kind):
    with dispatcher() as made:
        await ended(gateway := Gateway(made, Jobs(job := Job(b"x")), SoonSink(says)))
    assert kinds(job) == [[kind]] and gateway.in_flight == 0


@run
async def test_a_sink_that_took_a_mail_at_once_and_does_not_answer():
    answers = []

    class Cut(Jobs):
        async def run(self, gateway):
            await super().run(gateway)
            gateway.stop(patience=0.01)

    with dispatcher() as made:
        gateway = Gateway(made, Cut(job := Job(b"x")), SoonSink(lambda answer: answers.append(answer) is None))
        report = await ended(gateway)
        assert kinds(job) == [[Kind.IN_DOUBT]] and report.counts.in_doubt == 1
        for how in (Verdict.accepted(),), (None, defers):  # too late
            answers[0](*how)
    assert report.counts.continued == 0 and gateway.in_flight == 0


@run
async def test_verdicts_that_are_none():
    class Wrong(OwnSink):
        async def deliver(self, mails):
            return [Verdict("accepted")]

    with dispatcher() as made:
        await ended(Gateway(made, Jobs(job := Job(b"x")), Wrong()))
    assert job.verdicts is not None and not job.verdicts[0].is_good


@run
async def test_a_run_that_is_cancelled_ends_when_the_store_does():
    """The file may be closed then: what a thread wrote went to whoever opened another one."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Store):
        url = "slow:"
        done = False

        def store(self, mails):
            begun.set()
            assert go_on.wait(60)
            self.done = True

    with dispatcher() as made:
        running = asyncio.create_task(Gateway(made, Jobs(Job(b"x")), sink := Slow()).run())
        await asyncio.to_thread(begun.wait, 60)
        running.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not running.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert sink.done


@run
async def test_a_source_for_which_there_is_no_memory():
    """It ended the command with a traceback."""

    class Big(ListSource):
        def __iter__(self):
            yield from super().__iter__()
            raise MemoryError

    with dispatcher() as made:
        report = await ended(Gateway(made, Big([b"x"], "a@b", "c@d"), sink := ListSink()))
    assert report.error == "cannot read list:: Cannot allocate memory" and report.exit_code == 4
    assert report.counts.stored == len(sink.mails) == 1


class Disk(Store):
    url = "disk:"

    def __init__(self):
        self.mails = []

    def store(self, mails):
        self.mails += mails


def test_no_memory_for_another_thread(monkeypatch):
    """It ended the run with a traceback, while what was refused was stored all the same, later."""
    begun = []

    def begin_one(thread):
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start_thread(thread)

    start_thread = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", begin_one)

    @run
    async def main():
        with dispatcher() as made:
            report = await ended(Gateway(made, Jobs(*(Job(b"x") for _ in range(3))), sink := Disk()))
        assert report.error is None and report.counts.stored == len(sink.mails) == 3
        go_on = threading.Event()
        waiting = asyncio.create_task(in_thread(go_on.wait, 60))
        behind = asyncio.create_task(in_thread(go_on.is_set))
        asyncio.get_running_loop().call_later(0.01, go_on.set)
        assert await waiting and await behind

    main()
    assert len(begun) == 1


def test_no_memory_for_any_thread(monkeypatch):
    def begin(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", begin)

    @run
    async def main():
        with pytest.raises(RuntimeError, match="can't start"):
            await in_thread(bool)
        with dispatcher() as made:
            report = await ended(Gateway(made, Jobs(Job(b"x")), Disk()))
            assert report.error == "there is no thread to read and to store with: can't start new thread"
            assert report.exit_code == 4 and report.counts.read == 0
            report = await ended(Gateway(made, Jobs(Job(b"x")), NullSink("")))  # which needs none
            assert report.error is None and report.counts.stored == 1

    main()


# What waits


@run
async def test_what_waits_and_is_taken_back_keeps_no_bytes():
    class Waiting(Jobs):
        async def run(self, gateway):
            await super().run(gateway)
            self.jobs[1].cancel()
            assert self.jobs[1].mails == ()
            made.cancel(self.jobs[0].mails[0])

    jobs = [Job(b"one"), Job(b"two")]
    with dispatcher(hold=lambda context, message: mqcore.HOLD) as made:
        report = await ended(Gateway(made, Waiting(*jobs), NullSink(""), max_in_flight=1))
    assert jobs[1].verdicts is None and report.counts.unfinished == 1 and report.counts.read == 2


@run
async def test_a_stop_after_the_end():
    """It began a timer for what is still open, which then went on for ever."""

    class Stopped(Jobs):
        def stop(self):
            raise AssertionError

    with dispatcher() as made:
        gateway = Gateway(made, Stopped(), NullSink(""))
        await ended(gateway)
        gateway.stop()
    assert gateway.is_stopping


@run
async def test_a_sink_that_takes_back_of_its_own_leaves_no_success():
    class Back(OwnSink):
        async def deliver(self, mails):
            return [CANCELLED]

    with dispatcher() as made:
        report = await ended(Gateway(made, ListSource([b"x"], "a@b", "c@d"), Back()))
    assert report.counts.unfinished == 1 and report.exit_code == 1


# Reasons


def test_reasons_that_cannot_be_told(tmp_path):
    class Untold(Exception):
        def __str__(self):
            raise RuntimeError

    def hook(context, message):
        message.results.append(object())
        raise Untold

    @run
    async def main():
        failed = FailedSink(MaildirSink(str(tmp_path / "failed")), "list:")
        with contextlib.closing(failed), dispatcher(bad=hook) as made:
            report = await ended(Gateway(made, ListSource([b"x"], "a@b", "c@d"), NullSink(""), failed))
        assert report.error is None and report.counts.failed == 1

    main()
    (line,) = (tmp_path / "failed" / "mqcore.reasons.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == "Untold"


@pytest.mark.parametrize(
    ("says", "error"), [(Verdict.failed(ValueError("the broker said so")), "ValueError: the broker said so"),
                        (Verdict.failed(), "the sink does not say why")],
)
def test_the_reason_of_a_mail_that_the_sink_failed(tmp_path, says, error):
    class Fails(OwnSink):
        async def deliver(self, mails):
            return [says]

    @run
    async def main():
        failed = FailedSink(MaildirSink(str(tmp_path / "failed")), "list:")
        with contextlib.closing(failed), dispatcher() as made:
            report = await ended(Gateway(made, ListSource([b"x"], "a@b", "c@d"), Fails(), failed))
        assert report.error is None and report.counts.failed == 1

    main()
    (line,) = (tmp_path / "failed" / "mqcore.reasons.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == error


# Files


def test_a_maildir_whose_folders_were_removed_while_a_run_was_killed(tmp_path):
    """The index told of mails that were thrown away with the folders; the run after stored nothing, with exit code 0."""
    mail = Mail(b"x")
    with contextlib.closing(MaildirSink(str(tmp_path / "in"))) as sink:
        sink.store([mail])
    for folder in ("new", "cur", "tmp"):
        for file in (tmp_path / "in" / folder).iterdir():
            file.unlink()
        (tmp_path / "in" / folder).rmdir()
    make(tmp_path / "in", "maildir:in")  # and killed
    with contextlib.closing(MaildirSink(str(tmp_path / "in"))) as sink:
        assert mail.origin.id not in sink


def test_planted_links_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious, without a line's end")
    (tmp_path / "mbox").touch()
    (tmp_path / "mbox.sent.smtp.127.0.0.1:25").symlink_to(victim)
    with pytest.raises(mqcore.mail.SinkError):
        SmtpSink("//127.0.0.1:25", source=tmp_path / "mbox")
    with contextlib.closing(MaildirSink(str(tmp_path / "failed"))) as sink:
        sink.notes.symlink_to(victim)
        with pytest.raises(mqcore.mail.SinkError):
            FailedSink(sink, "list:").store([Mail(b"x")])
    assert victim.read_bytes() == b"precious, without a line's end"
    (tmp_path / "in" / "new").mkdir(parents=True)
    (tmp_path / "in" / "new" / "1.x").symlink_to(victim)
    assert list(MaildirSource(str(tmp_path / "in"))) == []


def test_what_is_called_in_a_thread_ends_before_whoever_waits():
    """Though that be cancelled, again and again, and whatever the call raises; else it would work on what is closed."""

    @run
    async def main():
        for error in (None, ValueError("late")):
            go_on, ended_at_last = threading.Event(), []

            def work(go_on=go_on, error=error, ended=ended_at_last):
                assert go_on.wait(20)
                ended.append(True)
                if error is not None:
                    raise error

            task = asyncio.create_task(in_thread(work))
            await asyncio.sleep(0)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.001)
                assert not task.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ended_at_last
        with pytest.raises(ZeroDivisionError):
            await in_thread(divmod, 1, 0)
        assert await in_thread(divmod, 7, 2) == (3, 1)

    main()
