"""How plugins are chosen on the command line."""

from __future__ import annotations

import argparse

from .. import Plugins


def loading() -> argparse.ArgumentParser:
    """The options of each command that loads plugins."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", metavar="FILE", help="TOML file with a table for each plugin")
    parser.add_argument("--trust-writable", action="store_true", help="load plugins that everyone may write to")
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


def load(options: argparse.Namespace, *paths: str) -> Plugins:
    return Plugins(*paths, config=options.config, trust_writable=options.trust_writable)
