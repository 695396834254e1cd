"""A store that gives its groups to a thread without the GIL, as a Maildir does with mail from clients."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mail_tools import read_maildir, small_disk
from smtp_tools import run
from test_mail_gateway_faults import Job, Jobs, dispatcher, ended, kinds

from mqcore.mail import Gateway, Mail, MaildirSink, Origin, SinkError, Store, Transaction
from mqcore.mail._jobs import JobThread
from mqcore.mail.errors import SinkFull
from mqcore.mail.maildir._files import Group
from mqcore.mail.verdicts import Kind


class FromClient(Job):
    """Its mails never come again."""

    def __init__(self, *numbers: int, size: int = 1, comes_again: bool = False) -> None:
        texts = [b"%d" % number * size for number in numbers]
        origins = [Origin(text, f"{number:032x}", comes_again=comes_again) for text, number in zip(texts, numbers, strict=True)]
        Transaction.__init__(self, map(Mail.read, origins))
        self.verdicts = None


class Counting(MaildirSink):
    """Notes which way each group went, and how many mails it had; `faults` are raised by these ways, in turn."""

    def __init__(self, path: Path, *faults: Exception) -> None:
        super().__init__(str(path))
        self.ways: list[tuple[str, int]] = []
        self.faults = list(faults)

    def note(self, way, count):
        self.ways.append((way, count))
        if self.faults and (error := self.faults.pop(0)):
            raise error

    def begin(self, mails):
        job = super().begin(mails)
        if job is not None:
            self.note("job", len(mails))
        return job

    def store(self, mails):
        self.note("store", len(mails))
        super().store(mails)


class Later(Jobs):
    """Offers one when the one before is settled."""

    async def run(self, gateway):
        for job in self.jobs:
            gateway.offer([job])
            while job.verdicts is None and not gateway.report.error:
                await asyncio.sleep(0)


@contextlib.contextmanager
def opened(path: Path, *faults: Exception):
    with contextlib.closing(Counting(path, *faults)) as sink:
        yield sink


async def report_of(sink: Store, *jobs: Job, source: type[Jobs] = Jobs):
    with dispatcher() as made:
        return await ended(Gateway(made, source(*jobs), sink))


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mqcore-jobs"]


@run
async def test_groups_of_clients_mails_are_jobs(tmp_path):
    with opened(tmp_path / "out") as sink:
        jobs = [FromClient(number) for number in range(20)]
        report = await report_of(sink, *jobs)
        assert kinds(*jobs) == [[Kind.ACCEPTED]] * 20
        more = [FromClient(number) for number in range(20, 25)]
        again = await report_of(sink, *more, source=Later)
        assert report.exit_code == again.exit_code == 0
    assert {way for way, _ in sink.ways} == {"job"} and sum(count for _, count in sink.ways) == 25
    assert sorted(read_maildir(tmp_path / "out"), key=int) == [b"%d" % number for number in range(25)]
    assert threads() == []


@run
async def test_what_is_noted_in_the_index_or_large_is_stored_as_ever(tmp_path):
    jobs = [FromClient(1), FromClient(2, comes_again=True), FromClient(3), FromClient(4, size=1 << 20), FromClient(5, 6)]
    with opened(tmp_path / "out") as sink:
        await report_of(sink, *jobs, source=Later)
    assert sink.ways == [("job", 1), ("store", 1), ("job", 1), ("store", 1), ("job", 2)]
    assert len(read_maildir(tmp_path / "out")) == 6
    assert (tmp_path / "out" / "mqcore.stored").read_text() == f"{2:032x}\n"


def test_without_a_thread_it_goes_as_ever(tmp_path, monkeypatch):
    def refuse(thread):
        if thread.name == "mqcore-jobs":
            raise RuntimeError("can't start new thread")
        start(thread)

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", refuse)
    descriptors = len(os.listdir("/dev/fd"))

    @run
    async def main():
        with opened(tmp_path / "out") as sink:
            await report_of(sink, job := FromClient(1))
        assert sink.ways == [("store", 1)]
        assert kinds(job) == [[Kind.ACCEPTED]]

    main()
    gc.collect()
    assert len(os.listdir("/dev/fd")) == descriptors


@run
async def test_a_full_disk_is_tried_again(tmp_path):
    """One by one, and what there is no room for is refused for now. The next group is a job again."""
    with small_disk(tmp_path / "disk") as disk, opened(disk / "out") as sink:
        first = [FromClient(1), FromClient(2, size=900_000)]
        with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - 65536)
        await report_of(sink, *first)
        assert kinds(*first) == [[Kind.ACCEPTED], [Kind.DEFERRED]]
        assert sink.ways == [("job", 2), ("store", 2), ("store", 1), ("store", 1)]
        assert list((disk / "out" / "tmp").iterdir()) == []
        await report_of(sink, last := FromClient(3))
        assert kinds(last) == [[Kind.ACCEPTED]] and sink.ways[-1] == ("job", 1)
        assert sorted(read_maildir(disk / "out")) == [b"1", b"3"]


class Broken(Counting):
    """What it says when a job is over."""

    says: Exception

    def end(self, job):
        super().end(job)
        raise self.says


@pytest.mark.parametrize("says", [SinkError("the disk broke"), ValueError("a bug")])
@run
async def test_an_error_of_a_job_ends_the_run(tmp_path, says):
    """And nothing more is written there."""
    with contextlib.closing(Broken(tmp_path / "out")) as sink:
        sink.says = says
        jobs = [FromClient(1), FromClient(2)]
        report = await report_of(sink, *jobs, source=Later)
    assert report.error == str(says) and report.exit_code == 4
    assert sink.ways == [("job", 1)]
    assert all(not job.verdicts[0].is_good for job in jobs if job.verdicts)
    assert threads() == []


@pytest.mark.parametrize(("fault", "exit_code"), [(SinkFull("no memory"), 0), (ValueError("a bug"), 4)])
@run
async def test_what_begins_no_job(tmp_path, fault, exit_code):
    with opened(tmp_path / "out", fault) as sink:
        report = await report_of(sink, FromClient(1))
    assert report.exit_code == exit_code
    assert sink.ways == [("job", 1), *[("store", 1)] * (exit_code == 0)]


@run
async def test_a_store_of_its_own_is_not_gone_around(tmp_path):
    class Own(MaildirSink):
        stored = 0

        def store(self, mails):
            super().store(mails)
            self.stored += len(mails)

    class OwnToo(Counting):
        pass

    class Audit:
        def store(self, mails):
            super().store(mails)

    class Audited(Audit, MaildirSink):
        pass

    class AuditedToo(Audited):
        pass

    class Begins(Audited):
        def begin(self, mails):
            return super().begin(mails)

    assert (Own.begins, OwnToo.begins, MaildirSink.begins, Store.begins) == (False, True, True, False)
    assert (Audited.begins, AuditedToo.begins, Begins.begins) == (False, False, True)
    with contextlib.closing(Own(str(tmp_path / "out"))) as sink:
        await report_of(sink, FromClient(1))
        assert sink.stored == 1


@run
async def test_a_run_that_is_cancelled_ends_when_the_job_does(tmp_path):
    with opened(tmp_path / "out") as sink, dispatcher() as made:
        running = asyncio.create_task(Gateway(made, Jobs(*(FromClient(number) for number in range(200))), sink).run())
        while not sink.ways:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert threads() == []
        assert len(read_maildir(tmp_path / "out")) == sink.ways[0][1]


@run
async def test_a_run_that_is_cancelled_lets_the_loop_go_on_until_the_job_is_over(tmp_path):
    """However slow the disk is. What it waits for is waited for, however often it is cancelled."""

    class Slow(Counting):
        job = None

        def begin(self, mails):
            self.job = super().begin(mails)
            for number in range(5_000):
                self.job.add(b"%d" % number, self._folders["new"], b"%d" % number, b"", None)
            return self.job

    with contextlib.closing(Slow(tmp_path / "out")) as sink, dispatcher() as made:
        running = asyncio.create_task(Gateway(made, Jobs(FromClient(1)), sink).run())
        while sink.job is None:
            await asyncio.sleep(0)
        turns = 0
        while not running.done():
            running.cancel()
            await asyncio.sleep(0.001)
            turns += 1
        assert running.cancelled() and turns > 20
        assert threads() == []
        assert len(read_maildir(tmp_path / "out")) == 5_001


class Loop:
    """Calls nothing: what is over is known when the thread is closed."""

    def add_reader(self, fd, callback): ...

    def remove_reader(self, fd): ...


def test_what_is_no_job(tmp_path):
    with pytest.raises(TypeError):
        JobThread(None, print)
    with pytest.raises(AttributeError):
        JobThread(object(), print)
    assert threads() == []
    thread = JobThread(Loop(), print)
    for wrong in (None, 1):
        with pytest.raises((RuntimeError, TypeError)):
            thread.begin(wrong)
    thread.begin(group := Group(-1, in_one=False))
    with pytest.raises(RuntimeError):
        thread.begin(group)
    for _ in range(2):
        thread.close()
    with pytest.raises(RuntimeError):
        thread.begin(group)
    assert threads() == []
    group.check()


def test_what_is_closed_by_several_at_once(tmp_path):
    """Its descriptors are closed once: the second time they may be somebody else's."""
    folder = os.open(tmp_path, os.O_RDONLY)
    group = Group(folder, in_one=True)
    for number in range(2000):
        group.add(b"%d" % number, folder, b"new %d" % number, b"", None)
    thread = JobThread(Loop(), print)
    thread.begin(group)
    with ThreadPoolExecutor(4) as others:
        for closed in [others.submit(thread.close) for _ in range(4)]:
            closed.result()
    os.close(folder)
    group.check()
    assert threads() == []


@run
async def test_a_store_that_gives_no_job(tmp_path):
    """It ended nothing well: the run says so, and the client is not told that its mail is there."""

    class Wrong(Counting):
        def begin(self, mails):
            return 1

    with contextlib.closing(Wrong(tmp_path / "out")) as sink:
        report = await report_of(sink, job := FromClient(1))
    assert report.exit_code == 4 and not job.verdicts[0].is_good
