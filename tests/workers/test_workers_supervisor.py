"""The supervisor by itself, with little patience: hangs, slots that nobody serves, crashes without end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator

import pytest
import uvloop
from mail_tools import write_plugin
from waiting import until

from mqcore.mail.listening import Listening
from mqcore.workers import slot as slots
from mqcore.workers.process import State
from mqcore.workers.supervisor import Patience, Supervisor

PLUGIN = """
    import os
    import time

    def mq_smtp_in_connect(context, message):
        if os.path.exists({flag!r}):
            {does}
        return False
    """

WAITS = """
    def mq_smtp_in_connect(context, message):
        return False
    """


@pytest.fixture
def runner():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


@pytest.fixture
def as_it_is_tested(monkeypatch):
    """Workers find the package that this process has imported."""
    import sys

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path or os.getcwd() for path in sys.path))


@contextlib.asynccontextmanager
async def supervised(*arguments: object, workers: int = 1, **patience: float) -> AsyncIterator[Supervisor]:
    listening = Listening("smtp", "//127.0.0.1:0", workers)
    ready = asyncio.Event()
    command = ["run", "--from", listening.url, "--to", "null:", "--hostname", "mx.example.org", "--workers", str(workers)]
    supervisor = Supervisor(
        [*command, *map(str, arguments)],
        workers,
        100,
        listening,
        patience=Patience(**{"look": 0.05, **patience}),
        when_ready=ready.set,
    )
    running = asyncio.create_task(supervisor.run())
    try:
        await asyncio.wait([asyncio.create_task(ready.wait()), running], return_when=asyncio.FIRST_COMPLETED)
        yield supervisor
    finally:
        supervisor.stop()
        await running


async def connect(supervisor: Supervisor) -> bytes:
    """What is said to a client first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", supervisor.listening.port)
    try:
        async with asyncio.timeout(30):
            return await reader.readline()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def test_a_worker_that_hangs_is_ended(tmp_path, runner, as_it_is_tested, caplog):
    flag = tmp_path / "flag"
    folder = write_plugin(tmp_path / "plugins", "10-hangs", PLUGIN.format(flag=str(flag), does="time.sleep(1000)")).parent

    async def main():
        async with supervised("--plugins", folder, "--watchdog", "0", beat=1.5, abort=5.0) as supervisor:
            (slot,) = supervisor.slots
            flag.touch()
            hanging, client = slot.worker, asyncio.create_task(connect(supervisor))
            await hanging.ended.wait()
            assert hanging.why == "SIGABRT"
            flag.unlink()
            assert await client == b""
            await until(lambda: slot.is_served)
            assert (await connect(supervisor)).startswith(b"220 ")
            assert supervisor.books.crashes == 1

    runner.run(main())
    assert "gave no sign of life for 1.5 s, and is ended" in caplog.text


def test_a_worker_that_is_told_to_end_when_it_has_just_died(runner, as_it_is_tested, monkeypatch):
    told, waitid = threading.Event(), os.waitid

    def wait_slowly(*arguments):
        waitid(*arguments)
        told.wait(30)
        return waitid(*arguments)

    monkeypatch.setattr(os, "waitid", wait_slowly)

    async def main():
        async with supervised() as supervisor:
            worker = supervisor.slots[0].worker
            os.kill(worker.pid, signal.SIGKILL)
            await asyncio.to_thread(waitid, os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
            worker.signal(signal.SIGTERM)
            told.set()
            async with asyncio.timeout(30):
                await worker.ended.wait()
            assert worker.why == "SIGKILL"

    runner.run(main())


def test_a_slot_that_nobody_serves(tmp_path, runner, as_it_is_tested, monkeypatch):
    monkeypatch.setattr(slots, "FIRST_PAUSE", 1000.0)
    monkeypatch.setattr(slots, "LONGEST_PAUSE", 1000.0)

    async def main():
        async with supervised(empty=0.2) as supervisor:
            os.kill(supervisor.slots[0].worker.pid, signal.SIGKILL)
            assert (await connect(supervisor)).startswith(b"421 4.3.2 ")
            await supervisor.reload()  # which starts one
            assert (await connect(supervisor)).startswith(b"220 ")

    runner.run(main())


@pytest.mark.slow
def test_workers_that_all_end_at_once(tmp_path, runner, as_it_is_tested, monkeypatch):
    monkeypatch.setattr(slots, "LONGEST_PAUSE", 0.01)
    flag = tmp_path / "flag"
    plugin = f"import os, signal\nif os.path.exists({str(flag)!r}):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    folder = write_plugin(tmp_path / "plugins", "10-ends", plugin).parent

    async def main():
        async with supervised("--plugins", folder) as supervisor:
            flag.touch()
            os.kill(supervisor.slots[0].worker.pid, signal.SIGKILL)
            await supervisor._over.wait()
        return await supervisor_report(supervisor)

    async def supervisor_report(supervisor):
        report = supervisor.report()
        assert supervisor._error is not None
        report.error, report.error_code = supervisor._error
        return report

    report = runner.run(main())
    assert (report.exit_code, report.crashes) == (4, 5)
    assert report.error == "each worker ended 5 times in a row within 10 s, the last one by SIGKILL"


def test_a_paused_plugin_stays_so_in_workers_that_are_started_later(tmp_path, runner, as_it_is_tested):
    from mqcore.workers.commands import WorkersCommands

    folder = write_plugin(tmp_path / "plugins", "10-waits", WAITS).parent

    async def main():
        async with supervised("--plugins", folder) as supervisor:
            commands = WorkersCommands(supervisor, "smtp:", "null:")
            assert await commands.run({"command": "pause", "plugin": "10-waits"}) == {"paused": ["10-waits"]}
            first = supervisor.slots[0].worker
            told = await commands.run({"command": "reload"})
            assert told["plugins"] == 1
            assert supervisor.slots[0].worker is not first
            await first.ended.wait()
            status = await commands.run({"command": "status"})
            assert (status["paused"], status["workers"], status["reloads"]["succeeded"]) == (["10-waits"], 1, 1)

    runner.run(main())


def test_what_a_supervisor_that_was_stopped_itself_did_not_hear(runner, as_it_is_tested):
    """Is no sign of a hang."""

    async def main():
        async with supervised(beat=3.0) as supervisor:
            supervisor._last_look -= 100
            supervisor.slots[0].worker.last_beat -= 100
            await asyncio.sleep(0.3)
            assert supervisor.slots[0].worker.state is State.READY

    runner.run(main())


def test_no_worker_can_be_started(runner, monkeypatch):
    """As where `--user` names somebody who may not run this Python."""
    monkeypatch.setattr("sys.executable", "/no/such/python")

    async def main():
        with contextlib.closing(Listening("smtp", "//127.0.0.1:0", 2)) as listening:
            return await Supervisor(["run"], 2, 100, listening).run()

    report = runner.run(main())
    assert report.exit_code == 4
    assert report.error == "no worker can be started: [Errno 2] No such file or directory: '/no/such/python'"


def test_sockets_of_slots():
    with contextlib.closing(Listening("smtp", "//127.0.0.1:0", 3)) as listening:
        ports = {one.getsockname()[1] for slot in listening.slots for one in slot}
        assert (len(listening.slots), ports) == (3, {listening.port})
        assert listening.url == f"smtp://127.0.0.1:{listening.port}"
        with socket.create_connection(("127.0.0.1", listening.port)):
            pass
