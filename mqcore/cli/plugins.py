"""How plugins are chosen on the command line."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

from .. import Plugins
from ..hooks import MAILERQ_HOOKS, HookSpec, close_to
from ..mail.report import OK
from ..plugins._checks import is_inside
from ..plugins._config import line_of, place_of, read_toml
from ..plugins._files import passed_over
from .configuration import TABLE as RUN_TABLE
from .output import complain


def loading() -> argparse.ArgumentParser:
    """The options of each command that loads plugins."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get("MQCORE_CONFIG") or None,
        help="TOML file with a table for each plugin, and [run] (default: $MQCORE_CONFIG)",
    )
    parser.add_argument("--trust-writable", action="store_true", help="load plugins that everyone may write to")
    parser.add_argument("--entry-points", action="store_true", help="load the plugins of installed packages")
    return parser


def choosing() -> argparse.ArgumentParser:
    """The options of each command that is told where plugins are."""
    parser = argparse.ArgumentParser(add_help=False, parents=[loading()])
    parser.add_argument(
        "--plugins",
        metavar="PATH",
        action="append",
        default=[],
        help="directory of plugins, or one plugin; may be repeated",
    )
    return parser


def load(options: argparse.Namespace, *paths: str, hooks: Iterable[HookSpec] | None = None) -> Plugins:
    """`hooks`: others than those of MailerQ."""
    options.folder = os.getcwd()  # a plugin may change it
    hooks = MAILERQ_HOOKS if hooks is None else hooks
    plugins = Plugins(*paths, hooks=hooks, config=options.config, trust_writable=options.trust_writable)
    try:
        if options.entry_points:
            plugins.load_entry_points()
    except BaseException:
        plugins.close()
        raise
    return plugins


def tell_what_is_missing(options: argparse.Namespace, plugins: Plugins, paths: Iterable[str]) -> None:
    """Say what is likely to be a mistake: no plugins, and tables of the file for which there is none."""
    _tell_of_empty_folders(options, plugins, paths)
    # With its folder, as a plugin may have changed the working directory.
    file = options.config and os.path.join(options.folder, options.config)
    in_file = read_toml(file) if file else {}
    tables = in_file.get("plugins", in_file)
    for name in plugins.unused_config:
        if name != RUN_TABLE:
            _, line = place_of(file, name) or (file, None)
            where = options.config if line is None else f"{options.config}:{line}"
            complain(f"{where} has {name}, and there is no plugin of that name; {_hint(name, tables.get(name), plugins)}", OK)
    for plugin in plugins if "plugins" in in_file else ():
        if plugin.name in in_file:
            line = line_of(file, plugin.name)
            complain(f"{options.config}:{line} has [{plugin.name}], which nothing reads; write [plugins.{plugin.name}]", OK)


def _tell_of_empty_folders(options: argparse.Namespace, plugins: Plugins, paths: Iterable[str]) -> None:
    if not len(plugins):
        folders = [os.path.join(options.folder, path) for path in paths]
        complain("; ".join(["there are no plugins", *(reason for folder in folders for reason in passed_over(folder))]), OK)
        return
    for path in paths:
        whole = os.path.abspath(os.path.join(options.folder, path))
        if not any(plugin.path and is_inside(plugin.path, whole) for plugin in plugins):
            complain(f"there are no plugins in {path}", OK)


def _hint(name: str, value: object, plugins: Plugins) -> str:
    """What was most likely meant by a name that is no plugin's."""
    if close := close_to(name, [plugin.name for plugin in plugins]):
        return f"did you mean {close}?"
    table = close_to(name.lower(), (RUN_TABLE, "plugins"), 0.8)
    if table == RUN_TABLE:
        return f"did you mean [{table}]?"
    return "load it, or take its table away" if isinstance(value, Mapping) and table != "plugins" else "write [plugins.NAME]"


@contextlib.contextmanager
def printing_to_standard_error() -> Iterator[Callable[[str], None]]:
    """What plugins print, in whatever language, and what their processes do, goes to standard error: standard output is for the
    command, which may write a line to it meanwhile by the function that this gives."""
    sys.stdout.flush()
    kept = os.dup(1)

    def tell(line: str) -> None:
        left = f"{line}\n".encode(errors="backslashreplace")
        while left:
            left = left[os.write(kept, left) :]

    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(_StandardError()):
            yield tell
    finally:
        with contextlib.suppress(OSError):  # a plugin kept the stream, and its reader is gone
            sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


class _StandardError(io.TextIOBase):
    """What `sys.stderr` is at the time: the progress bar puts itself in its place."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def isatty(self) -> bool:
        return sys.stderr.isatty()
