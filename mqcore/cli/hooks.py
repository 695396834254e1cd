"""`--hooks`: the hooks of a program of one's own, for commands that look at its plugins."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable

from ..hooks import HookSpec
from .configuration import argument
from .plugins import printing_to_standard_error


def hooks_option() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--hooks",
        metavar="MODULE:NAME",
        type=argument(read_hooks),
        help="the hooks of your own program: a HookSpec, or a list of them, in that module (default: those of MailerQ)",
    )
    return parser


def read_hooks(text: str) -> list[HookSpec]:
    """Those of that name in that module, which may be in the current directory. Raises ValueError."""
    if not re.fullmatch(r"[\w.]+:[\w.]+", text):
        raise ValueError(f"{text!r} is no MODULE:NAME, such as myserver.hooks:HOOKS")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the last one, so that nothing there is in the way of what is installed
    try:
        with printing_to_standard_error():
            from importlib.metadata import EntryPoint  # takes its time, which most need not wait for

            value: object = EntryPoint("hooks", text, "").load()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{text} cannot be had: {type(error).__name__}: {error}") from error
    hooks = [value] if isinstance(value, HookSpec) else list(value) if isinstance(value, Iterable) else []
    if not hooks or not all(isinstance(each, HookSpec) for each in hooks):
        raise ValueError(f"{text} is no HookSpec, and no list of them, but {value!r}")
    return hooks
