"""`mqcore run --workers N`: the supervisor."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import uvloop

from ..mail.listening import Listening
from ..mail.maildir.lock import MaildirLock
from ..mail.report import OK, Report
from ..server import ReloadError, systemd
from .closing import print_figures, tell_end
from .configuration import processes
from .listening import controlled, shown_at
from .output import begin_log, complain
from .user import become_as_told

if TYPE_CHECKING:
    from ..workers.supervisor import Supervisor


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        metavar="N",
        type=processes,
        help="serve with so many processes, or auto: as many as there are cores; who ends is replaced (default: one, "
        "which nobody replaces)",
    )


def supervise(options: argparse.Namespace, chosen: list[dict[str, Any]], control: str | None) -> int:
    """Run until it is stopped. The exit code."""
    source = options.source
    for place, what in ((source, "--from"), (options.sink, "--to"), (options.failed, "--failed")):
        if place is not None and not place.kind.shares:
            options.parser.error(f"{what} {place.scheme}: is for one process; leave --workers out")
    begin_log(options.log_format, options.log_level)
    with contextlib.ExitStack() as opened:
        listening = None
        if source.kind.listens:
            listening = opened.enter_context(contextlib.closing(Listening(source.scheme, source.path, options.workers)))
        if options.user is not None:
            become_as_told(options)
        maildirs = {}
        for path in {place.path for place in (options.sink, options.failed) if place is not None and place.scheme == "maildir"}:
            maildirs[path] = opened.enter_context(contextlib.closing(MaildirLock(path)))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report, killed_by = runner.run(_supervise(options, listening, maildirs, control))
    code = tell_end(report, as_json=options.json)
    return code if killed_by is None else 128 + killed_by


async def _supervise(
    options: argparse.Namespace, listening: Listening | None, maildirs: dict[str, MaildirLock], control: str | None
) -> tuple[Report, signal.Signals | None]:
    # These take their time, which a run without workers does not have to wait for.
    from ..workers.commands import WorkersCommands
    from ..workers.shown import ShownWorkers
    from ..workers.supervisor import Supervisor

    url = str(options.source) if listening is None else listening.url

    def tell_ready() -> None:
        complain(f"listening on {url}", OK)
        if shown_url is not None:
            complain(f"metrics at {shown_url}", OK)
        systemd.notify("READY=1", f"STATUS={options.workers} workers listening on {url}")

    supervisor = Supervisor(
        options.arguments,
        options.workers,
        -(-options.max_in_flight // options.workers),
        listening,
        maildirs=maildirs,
        implicit_tls=getattr(options.source.kind, "implicit_tls", False),
        when_ready=tell_ready,
    )
    commands = WorkersCommands(supervisor, url, str(options.sink))
    with steered_by_signals(supervisor, as_json=options.json), systemd.kept_alive(asyncio.get_running_loop()):
        async with controlled(commands, control), shown_at(ShownWorkers(supervisor, commands), options.metrics) as shown_url:
            return await supervisor.run(), supervisor.killed_by


@contextlib.contextmanager
def steered_by_signals(supervisor: Supervisor, *, as_json: bool) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run in good order, the second ends all processes. SIGHUP reloads, SIGUSR1 prints the
    figures as they are."""
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def stop(number: signal.Signals) -> None:
        if supervisor.is_stopping:
            supervisor.kill(number)
            return
        systemd.notify("STOPPING=1")
        complain("stopping when the transactions that are open are over; once more to stop at once", OK)
        supervisor.stop()

    async def reload() -> None:
        with contextlib.suppress(ReloadError):  # which is in the log
            await supervisor.reload()

    def begin_reload() -> None:
        task = loop.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    handlers: dict[signal.Signals, Callable[[], object]] = {
        signal.SIGINT: partial(stop, signal.SIGINT),
        signal.SIGTERM: partial(stop, signal.SIGTERM),
        signal.SIGHUP: begin_reload,
        signal.SIGUSR1: lambda: print_figures(supervisor.report(), as_json=as_json),
    }
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
