"""`mqcore run`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import uvloop

from .. import Dispatcher, Plugin, Plugins, Watchdog
from ..mail._gateway import HOOK, Gateway, needs_failed
from ..mail.base import BaseSink, Prepared, Source
from ..mail.failed import FailedSink
from ..mail.files import raise_file_limit
from ..mail.places import SINKS, SOURCES, STORES, Location, parse_sink, parse_source, parse_store
from ..mail.report import OK, SOME_FAILED, Report
from ..plugins._tasks import names_plugins
from ..server import Server, logs, systemd
from ..server.address import Address, parse_address
from ..server.options import PlaceOptions
from ..workers.start import Shared, Start
from . import options as place_options
from . import watchdog, workers
from .closing import tell_end, tell_error
from .configuration import Options, argument, count, ratio
from .listening import controlled, shown_at
from .output import begin_log, complain
from .plugins import choosing, load, printing_to_standard_error, tell_what_is_missing
from .progress import progress_bar
from .reloading import RunOptions
from .signals import STEERING, Steering
from .user import become_as_told, check_readable

if TYPE_CHECKING:
    from ..workers.worker import Worker
    from . import Commands

FILES = 1024
"""That the process may open, if the system lets it, for what is no client's connection: plugins, sinks, other servers."""
FEW_FILES = 64
"""With fewer there is a warning."""

EXIT_CODES = """\
exit codes: 0 all mails are in the sink, of a server: all that it accepted; 1 some failed or were rejected, or a plugin ended
the run; 2 wrong usage; 3 a plugin did not load; 4 source or sink cannot be used; 130 after Ctrl-C, 143 after SIGTERM"""


def add_to(commands: Commands) -> None:
    run = commands.add_parser("run", parents=[options()], help="move mail from a source to a sink", epilog=EXIT_CODES)
    run.set_defaults(command=move, parser=run, known=Options(run))


def options() -> argparse.ArgumentParser:
    """Those of a run."""
    run = argparse.ArgumentParser(add_help=False, parents=[choosing()])
    sources, sinks = (", ".join(known) for known in (SOURCES, SINKS))
    run.add_argument("--from", dest="source", metavar="SOURCE", type=argument(parse_source), required=True, help=sources)
    stays = "without it mail stays where it is, which is for --from milter: only"
    run.add_argument("--to", dest="sink", metavar="SINK", type=argument(parse_sink), help=f"{sinks}; {stays}")
    run.add_argument(
        "--failed",
        metavar="SINK",
        type=argument(parse_store),
        help=f"where mails go that failed or were rejected, as they were: {', '.join(STORES)}",
    )
    run.add_argument(
        "--max-in-flight",
        metavar="N",
        type=count,
        default=1000,
        help="most mails between source and sink (default: 1000)",
    )
    place_options.add_to(run)
    run.add_argument("--json", action="store_true", help="print the closing figures as JSON")
    run.add_argument(
        "--control",
        metavar="PATH",
        help="Unix socket for mqcore ctl (under systemd, with RuntimeDirectory=: control.sock in that folder)",
    )
    run.add_argument("--user", metavar="NAME", help="give up root's privileges for this user's, once the port is open")
    run.add_argument(
        "--metrics",
        metavar="ADDRESS",
        type=argument(_metrics_address),
        help="HOST:PORT, :PORT (this machine only) or unix:PATH for /metrics, /healthz, /readyz and the status page",
    )
    workers.add_to(run)
    watchdog.add_to(run)
    run.add_argument(
        "--trace",
        metavar="RATIO",
        type=ratio,
        default=0.0,
        help="send so many of all transactions, from 0 to 1, to OpenTelemetry as OTEL_* variables say (default: 0)",
    )
    run.add_argument("--log-format", choices=logs.FORMATS, default="text", help="how lines of the log look (default: text)")
    run.add_argument(
        "--log-level",
        choices=logs.LEVELS,
        help="the least that is logged; info has a line for each mail (default: warnings, and each refusal)",
    )
    return run


def _metrics_address(text: str) -> Address:
    address = parse_address(text)
    return os.path.abspath(address) if isinstance(address, str) else address  # a plugin may change the current directory


def move(options: argparse.Namespace) -> int:
    start = Start.take()
    worker = None if start is None else worker_of(start)
    heard = STEERING if worker is None else (signal.SIGUSR1,)  # a supervisor reloads by another process
    with Steering(heard) as steering, contextlib.closing(worker) if worker is not None else contextlib.nullcontext():
        options = options.known.settled(options)
        if worker is None and options.workers is not None:
            return workers.supervise(options, fit_together(options)[0], _control_path(options))
        return _move_steered(options, steering, worker)


def worker_of(start: Start) -> Worker:
    from ..workers.worker import Worker  # takes its time

    return Worker(start)


def _move_steered(options: argparse.Namespace, steering: Steering, worker: Worker | None) -> int:
    chosen, watched = fit_together(options)
    source, sink, failed = options.source, options.sink, options.failed
    if sink is None:
        options.parser.error("the following arguments are required: --to")
    reading, writing = chosen
    begin_log(options.log_format, options.log_level)
    files = raise_file_limit(FILES)
    if files < FEW_FILES:
        complain(f"this process may open {files} files, which may be too few; raise the limit (ulimit -n)", OK)
    again, control = place_options.to_read_again(options), _control_path(options)  # where we are now
    metrics, most, shared = options.metrics, options.max_in_flight, Shared()
    if worker is not None:
        control = metrics = None
        most, shared = worker.part_of(most), worker
    opening = reading | shared.of_source(source.kind)
    with contextlib.ExitStack() as opened:
        opened.enter_context(printing_to_standard_error())
        from_: Source | None = None
        if options.user is not None:  # who may not have the port, and whose code the plugins are
            from_ = opened.enter_context(contextlib.closing(source.kind(source.path, **opening)))
            become_as_told(options)
            check_readable(options.user, (reading[name] for name in ("tls_certificate", "tls_key") if name in reading))
        spans = opened.enter_context(_span_provider(options))
        gc.freeze()  # the collector need not look at all that was imported, again and again, but at what plugins make
        plugins = opened.enter_context(load(options, *options.plugins))
        from_ = from_ or opened.enter_context(contextlib.closing(source.kind(source.path, **opening)))
        try:
            _check_plugins(source, sink, plugins)
        except ValueError as error:
            options.parser.error(str(error))
        to = opened.enter_context(contextlib.closing(sink.kind.open(sink.path, from_, **writing, **shared.of_sink(sink.path))))
        aside = FailedSink(failed.kind.open(failed.path, from_, **shared.of_sink(failed.path)), from_.url) if failed else None
        if aside is not None:
            opened.enter_context(contextlib.closing(aside))
        if worker is None or worker.is_first:
            tell_what_is_missing(options, plugins, options.plugins)
        of_places = PlaceOptions((from_, to), (reading, writing))
        check = partial(_check_plugins, source, sink)

        def parts(gateway: Gateway) -> list[Callable[[], Prepared]]:
            return [RunOptions(gateway, options.settings, again, (source, sink), of_places, check)]

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            moving = _Moving(
                plugins,
                from_,
                to,
                aside,
                most,
                steering,
                parts,
                control,
                metrics,
                watched,
                options.log_format,
                (spans, options.trace),
                worker,
            )
            report = _run(runner, moving)
    return tell_end(report, as_json=options.json) if worker is None else tell_error(report)


def fit_together(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Watchdog | None]:
    """What source and sink take of the options, and what the watchdog does. Tells the parser of those that do not go together;
    where there is no source or no sink, of the others. A source that keeps its mail becomes the sink where there is none."""
    if options.source and not options.sink and options.source.kind.own_sink:
        options.sink = Location(options.source.scheme, "", options.source.kind.own_sink)
    source, sink, failed = options.source, options.sink, options.failed
    for one, other in itertools.combinations(filter(None, (source, sink, failed)), 2):
        if one.is_same(other):
            what = {"mbox": "mailbox", "maildir": "mailbox", "amqp": "queue", "amqps": "queue"}.get(one.scheme, "server")
            options.parser.error(f"{one} and {other} are the same {what}")
    chosen = place_options.options_for(options, *filter(None, (source, sink)))
    watched = watchdog.watchdog_of(options)
    if source and sink and not failed and "one_recipient" not in chosen[0] and needs_failed(source.kind, sink.kind):
        options.parser.error(f"{sink} may take a mail for some of its recipients only; give --failed or --one-recipient")
    return chosen, watched


def _check_plugins(source: Location[Source], sink: Location[BaseSink], plugins: Iterable[Plugin]) -> None:
    """Raise ValueError if these plugins cannot work between source and sink: at the start, and at a reload."""
    plugins = list(plugins)
    _check_holds(source, plugins)
    _check_recipients(source, sink, {hook for plugin in plugins for hook in plugin.hooks})


def _check_recipients(source: Location[Source], sink: Location[BaseSink], hooks: AbstractSet[str]) -> None:
    """Raise ValueError if the sink is not told to whom mails go, with plugins that have these hooks."""
    setting = (HOOK, "mq_smtp_out_data")
    if sink.kind.needs_recipients and not source.kind.knows_recipients and hooks.isdisjoint(setting):
        raise ValueError(
            f"{source} does not say to whom its mails are to be sent: a plugin must set message.recipient, "
            f"in {' or '.join(setting)}"
        )


def _check_holds(source: Location[Source], plugins: Iterable[Plugin]) -> None:
    """Raise ValueError if a plugin may hold a mail for longer than its source lets it."""
    longest = source.kind.longest_hold
    for plugin in plugins if longest is not None else ():
        timeout = plugin.config.get("hold_timeout")
        if timeout is not None and not 0 < timeout <= longest:
            raise ValueError(
                f"plugin {plugin.name} has hold_timeout = {timeout:g} in its config; mails of {source} can be held for at most "
                f"{longest:g} s, and 0 is for ever: the broker gives them to somebody else after 1800 s"
            )


def _control_path(options: argparse.Namespace) -> str | None:
    path = options.control or systemd.control_socket()
    return None if path is None else os.path.abspath(path)


class _Moving(NamedTuple):
    """What a run is made of."""

    plugins: Plugins
    source: Source
    sink: BaseSink
    failed: FailedSink | None
    max_in_flight: int
    steering: Steering
    parts: Callable[[Gateway], list[Callable[[], Prepared]]]
    control: str | None
    metrics: Address | None
    watchdog: Watchdog | None
    log_format: str
    spans: tuple[Any, float]
    """Who makes them, if anybody does, and of how much."""
    worker: Worker | None
    """What this process is, if it has a supervisor."""


def _run(runner: asyncio.Runner, moving: _Moving) -> Report:
    """A plugin that calls sys.exit() leaves through the loop. Its step has failed then, and the others go on."""
    gateways: list[Gateway] = []
    loop = runner.get_loop()
    running = loop.create_task(_move(moving, gateways.append))
    while True:
        try:
            return loop.run_until_complete(running)
        except SystemExit as error:
            if running.done() or not gateways:
                raise
            where = "; ".join(getattr(error, "__notes__", ())) or "a plugin"
            reason = f"{where}, ended the run: sys.exit({'' if error.code is None else repr(error.code)})"
            # In the turn after the next, when its step has failed: a coroutine that has ended gives back in the next.
            loop.call_soon(loop.call_soon, gateways[0].fail, reason, SOME_FAILED)


async def _move(moving: _Moving, made: Callable[[Gateway], object]) -> Report:
    source = moving.source
    asyncio.get_running_loop().set_exception_handler(names_plugins(moving.plugins))
    with Dispatcher(moving.plugins, watchdog=moving.watchdog) as dispatcher:
        shared = {} if moving.worker is None else moving.worker.of_gateway()
        gateway = Gateway(dispatcher, source, moving.sink, moving.failed, max_in_flight=moving.max_in_flight, **shared)
        made(gateway)
        watchdog.report_as(dispatcher, moving.log_format)
        server = Server(gateway, moving.parts(gateway))
        if moving.worker is not None:
            with _stopped_by_signals(gateway, signal.SIGTERM), moving.steering.of(server), _traced(gateway, *moving.spans):
                async with moving.worker.serving(server):
                    return await gateway.run()
        with _stopped_by_signals(gateway), moving.steering.of(server), _traced(gateway, *moving.spans):
            async with controlled(server, moving.control), shown_at(server, moving.metrics) as url:
                if not source.finite:
                    complain(f"listening on {source.url}", OK)  # whoever reads this may end it at once
                if url is not None:
                    complain(f"metrics at {url}", OK)
                systemd.notify("READY=1", f"STATUS={'moving' if source.finite else 'listening on'} {source.url}")
                with systemd.kept_alive(asyncio.get_running_loop()):
                    async with progress_bar(gateway):
                        return await gateway.run()


@contextlib.contextmanager
def _span_provider(options: argparse.Namespace) -> Iterator[Any]:
    """Of OpenTelemetry's; None where nothing is traced, when nothing of it is imported."""
    if not options.trace:
        yield None
        return
    try:
        from ..server.otel import OtelError, provided
    except ImportError as error:
        options.parser.error(f"--trace needs OpenTelemetry ({error}): pip install 'mqcore[otel]'")
    with contextlib.ExitStack() as opened:
        try:
            provider = opened.enter_context(provided())
        except OtelError as error:
            options.parser.error(f"--trace: {error}")
        yield provider


@contextlib.contextmanager
def _traced(gateway: Gateway, provider: Any, ratio: float) -> Iterator[None]:
    if provider is None:
        yield
        return
    from ..server.otel import traced

    with traced(gateway, provider, ratio):
        yield


@contextlib.contextmanager
def _stopped_by_signals(gateway: Gateway, *signals: signal.Signals) -> Iterator[None]:
    """The first of these (Ctrl-C and SIGTERM) ends the run in good order, the second ends the process."""
    loop = asyncio.get_running_loop()

    # Not the loop's own handlers: those wait for a turn of the loop, which a plugin may never give back.
    def handle(number: int, frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        loop.call_soon_threadsafe(gateway.stop, signal.Signals(number))
        systemd.notify("STOPPING=1")
        why = f"stopping when {gateway.ends_when}; once more to stop at once"
        try:
            complain(why, OK)
        except RuntimeError:  # it is print() that was interrupted
            loop.call_soon_threadsafe(complain, why, OK)

    before = {one: signal.signal(one, handle) for one in signals or (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
