"""What the command tells of itself: its version, and how a shell completes its arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")
VERBOSE = ("-v", "--verbose")


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version; with -v also what it runs on")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        help="print a script with which the shell completes arguments (needs shtab)",
    )


def prints_version(arguments: Sequence[str]) -> bool:
    """Print the version with all that belongs to it, if that is what is asked for: in whatever order."""
    asked = set(arguments)
    if "--version" not in asked or not asked.intersection(VERBOSE) or not asked.issubset(("--version", *VERBOSE)):
        return False
    for line in versions():
        print(line)
    return True


def versions() -> Iterator[str]:
    """What runs here, each in a line."""
    import contextlib
    import platform
    from importlib.metadata import version

    import uvloop

    from .. import Dispatcher, Plugins
    from .._dispatcher import BUILD

    yield f"mqcore {version('mqcore')}"
    yield f"python {platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    yield f"uvloop {version('uvloop')}"
    with contextlib.closing(uvloop.new_event_loop()) as loop, Plugins() as plugins, Dispatcher(plugins, loop) as dispatcher:
        yield f"libuv {dispatcher.libuv}"
    yield f"build {BUILD}"


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # takes its time

        print(f"mqcore {version('mqcore')}")
        parser.exit()


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: object, shell: Any, *_: object) -> None:
        try:
            import shtab
        except ImportError:
            parser.error("--print-completion needs shtab: pip install shtab; or take contrib/completions/ of the sdist")
        print(shtab.complete(parser, shell=shell))
        parser.exit()
