"""The command `mqcore`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TypeVar

import uvloop

from .. import Dispatcher, PluginError, Plugins, get_include
from ..mail.base import Run, Sink, Source
from ..mail.errors import SinkError, SourceError
from ..mail.failed import FailedSink
from ..mail.pipeline import Pipeline
from ..mail.places import SINKS, SOURCES, STORES, Place, parse_sink, parse_source, parse_store
from ..mail.report import BAD_PLUGIN, OK, UNREACHABLE, Report
from ..mail.smtp.sink import TLS_OUT
from ..mail.smtp.source import SmtpSource
from .progress import progress_bar

T = TypeVar("T")
SERVERS = ("smtp", "smtps", "lmtp")
"""The schemes of places that are no mailboxes."""

EXIT_CODES = """\
exit codes: 0 all mails are in the sink; 1 some failed or were rejected; 2 wrong usage; 3 a plugin did not load;
4 source or sink cannot be used; 130 after Ctrl-C, 143 after SIGTERM"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    _open_standard_files()
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", handlers=[_StandardError()]
    )
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()  # here, where it is seen when nobody reads it
        return code
    except PluginError as error:
        return _complain(error, BAD_PLUGIN)
    except (SourceError, SinkError) as error:
        return _complain(error, UNREACHABLE)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _drop(1)  # as in `mqcore order | head`
        return 128 + signal.SIGPIPE


def _open_standard_files() -> None:
    """A server may be started without them. Then its connections would be the standard files, which libuv never closes."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mqcore", description="Move mail through plugins.", epilog=EXIT_CODES)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    loading = argparse.ArgumentParser(add_help=False)
    loading.add_argument("--config", metavar="FILE", help="TOML file with a table for each plugin")
    loading.add_argument("--trust-writable", action="store_true", help="load plugins that everyone may write to")
    choosing = argparse.ArgumentParser(add_help=False, parents=[loading])
    choosing.add_argument(
        "--plugins",
        metavar="PATH",
        action="append",
        default=[],
        help="directory of plugins, or one plugin; may be repeated",
    )

    run = commands.add_parser("run", parents=[choosing], help="move mail from a source to a sink", epilog=EXIT_CODES)
    sources, sinks = (", ".join(known) for known in (SOURCES, SINKS))
    run.add_argument("--from", dest="source", metavar="SOURCE", type=_place(parse_source), required=True, help=sources)
    run.add_argument("--to", dest="sink", metavar="SINK", type=_place(parse_sink), required=True, help=sinks)
    run.add_argument(
        "--failed",
        metavar="SINK",
        type=_place(parse_store),
        help=f"where mails go that failed or were rejected, as they were: {', '.join(STORES)}",
    )
    run.add_argument(
        "--max-in-flight",
        metavar="N",
        type=_count,
        default=1000,
        help="most mails between source and sink (default: 1000)",
    )
    receiving = run.add_argument_group("receiving by SMTP")
    receiving.add_argument("--tls-certificate", metavar="FILE", help="certificate, in PEM, with those that it depends on")
    receiving.add_argument("--tls-key", metavar="FILE", help="its key, if that is not in the same file")
    receiving.add_argument("--auth-without-tls", action="store_true", help="let passwords be sent in the clear")
    run.add_argument(
        "--tls-out",
        choices=TLS_OUT,
        help="STARTTLS of the next server: where it is offered and works (may, the default), never (none), always (require), "
        "always and with a trusted certificate (verify)",
    )
    run.add_argument("--json", action="store_true", help="print the closing figures as JSON")
    run.set_defaults(command=_run, parser=run)

    order = commands.add_parser("order", parents=[choosing], help="print the plugins of each hook, in order")
    order.set_defaults(command=_order)

    check = commands.add_parser("check", parents=[loading], help="load plugins and say what is wrong with them")
    check.add_argument("paths", metavar="PLUGIN", nargs="+", help="file, package, or directory of plugins")
    check.set_defaults(command=_check)

    include = commands.add_parser("include", help="print the folder of mqcore.h, for compiling native plugins")
    include.set_defaults(command=_include)
    return parser


def _place(parse: Callable[[str], Place[T]]) -> Callable[[str], Place[T]]:
    """`parse` in the way that argparse wants to be told of mistakes."""

    def convert(url: str) -> Place[T]:
        try:
            return parse(url)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return min(int(text), sys.maxsize)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # takes its time

        print(f"mqcore {version('mqcore')}")
        parser.exit()


class _StandardError(logging.Handler):
    """Writes what each logger says to standard error, up to a limit: a million mails may fail in the same way.

    The limit is for some time only, as a server may run for months.
    """

    LIMIT = 100
    PERIOD = 600.0

    def __init__(self) -> None:
        super().__init__()
        self._said: Counter[str] = Counter()
        self._since = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() - self._since > self.PERIOD:
            self._since = time.monotonic()
            self._said.clear()
        self._said[record.name] += 1
        if self._said[record.name] <= self.LIMIT:
            _say(self.format(record))
        elif self._said[record.name] == self.LIMIT + 1:
            _say(f"{record.name} said {self.LIMIT} things, and is silent for a while; what failed is counted at the end")


def _complain(problem: object, code: int) -> int:
    _say(f"mqcore: {problem}")
    return code


def _say(text: str) -> None:
    # Not a stream that was kept: the progress bar puts itself in the place of sys.stderr.
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _drop(2)  # as in `2>&1 | head`; it must not stop the mail


def _drop(fd: int) -> None:
    """Let go what is written to an output that nobody reads any more, and what waits in a buffer: else Python, which tries
    once more when it exits, would end with an exit code of its own."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def _plugins(options: argparse.Namespace, *paths: str) -> Plugins:
    return Plugins(*paths, config=options.config, trust_writable=options.trust_writable)


def _run(options: argparse.Namespace) -> int:
    source, sink, failed = options.source, options.sink, options.failed
    for one, other in itertools.combinations(filter(None, (source, sink, failed)), 2):
        if one.is_same(other):
            options.parser.error(f"{one} and {other} are the same mailbox")
    receiving = _receiving(options)
    if options.tls_out is not None and (sink.scheme not in ("smtp", "lmtp") or sink.path.startswith("unix:")):
        options.parser.error("--tls-out is for --to smtp://HOST:PORT and lmtp://HOST:PORT")
    with contextlib.ExitStack() as opened:
        plugins = opened.enter_context(_plugins(options, *options.plugins))
        for name in plugins.unused_config:
            _complain(f"{options.config} has {name}, and there is no plugin of that name; write [plugins.NAME]", OK)
        from_ = opened.enter_context(contextlib.closing(source.open(**receiving)))
        if sink.scheme in SERVERS:
            _check_recipients(options, plugins)
        to = opened.enter_context(contextlib.closing(sink.open(**_sending(options, from_))))
        aside = opened.enter_context(contextlib.closing(FailedSink(failed.open(), from_.url))) if failed else None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(_move(plugins, from_, to, aside, options.max_in_flight))
    try:
        _print(report, as_json=options.json)
    except BrokenPipeError:
        raise
    except OSError as error:  # the disk is full, which may be what the report tells of
        _complain(f"cannot write to standard output: {error.strerror}", OK)
        _drop(1)
    if report.error is not None:
        _complain(report.error, UNREACHABLE)
    return report.exit_code


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        from .tables import print_report  # takes rich with it, which takes a while

        print_report(report)
    sys.stdout.flush()


def _receiving(options: argparse.Namespace) -> dict[str, object]:
    """The options that only a source that is a server takes."""
    given = {
        "certificate": options.tls_certificate,
        "key": options.tls_key,
        "auth_without_tls": options.auth_without_tls,
    }
    if options.source.scheme not in SERVERS:
        if any(given.values()):
            options.parser.error("--tls-certificate, --tls-key and --auth-without-tls are for --from smtp: and smtps:")
        return {}
    if options.tls_certificate is None and (options.tls_key is not None or options.source.scheme == "smtps"):
        options.parser.error(f"{'--tls-key' if options.tls_key else '--from smtps:'} needs --tls-certificate")
    return given


def _sending(options: argparse.Namespace, source: Source | SmtpSource) -> dict[str, object]:
    """The options that only a sink that is a server takes."""
    sending: dict[str, object] = {}
    if options.tls_out is not None:
        sending["tls_out"] = options.tls_out
    if options.sink.scheme in SERVERS and not isinstance(source, SmtpSource):
        sending["source"] = source.path
    return sending


def _check_recipients(options: argparse.Namespace, plugins: Plugins) -> None:
    hooks = ("mq_smtp_in_message", "mq_smtp_out_data")
    if options.source.scheme not in SERVERS and not any(plugins.order(hook) for hook in hooks):
        options.parser.error(
            f"{options.source} does not say to whom its mails are to be sent: a plugin must set message.recipient, "
            f"in {' or '.join(hooks)}"
        )


async def _move(
    plugins: Plugins, source: Source | SmtpSource, sink: Sink, failed: FailedSink | None, max_in_flight: int
) -> Report:
    with Dispatcher(plugins) as dispatcher:
        run: Run
        if isinstance(source, SmtpSource):
            from ..mail.smtp.server import SmtpServer  # takes its time, which a mailbox need not wait for

            run = SmtpServer(dispatcher, source, sink, failed, max_in_flight=max_in_flight)
            _complain(f"listening on {source.url}", OK)
        else:
            run = Pipeline(dispatcher, source, sink, failed, max_in_flight=max_in_flight)
        async with progress_bar(run):
            with _stopped_by_signals(run):
                return await run.run()


@contextlib.contextmanager
def _stopped_by_signals(run: Run) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run in good order, the second ends the process."""
    loop = asyncio.get_running_loop()

    # Not the loop's own handlers: those wait for a turn of the loop, which a plugin may never give back.
    def handle(number: int, frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        loop.call_soon_threadsafe(run.stop, signal.Signals(number))
        _complain(f"stopping when {run.ends_when}; once more to stop at once", OK)

    before = {one: signal.signal(one, handle) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _order(options: argparse.Namespace) -> int:
    with _plugins(options, *options.plugins) as plugins:
        paths = {plugin.name: plugin.path for plugin in plugins}
        for hook in plugins.hooks:
            if names := plugins.order(hook):
                print(hook)
                for name in names:
                    print(f"    {name}  ({paths[name]})")
    return OK


def _check(options: argparse.Namespace) -> int:
    code = OK
    with _plugins(options) as plugins:
        for path in options.paths:
            before = {plugin.name for plugin in plugins}
            try:
                plugins.load(path)
            except PluginError as error:
                code = _complain(error, BAD_PLUGIN)
                continue
            for plugin in plugins:
                if plugin.name not in before:
                    print(f"{plugin.name}: {', '.join(plugin.hooks) or 'no hooks'}")
    return code


def _include(options: argparse.Namespace) -> int:
    print(get_include())
    return OK
