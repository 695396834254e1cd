"""`mqcore new`: the files of a plugin to begin with, and a test of it."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from ..mail.report import OK

if TYPE_CHECKING:
    from . import Commands

FOLDER = Path("plugins")
CONFIG = Path("mqcore.toml")
TEMPLATES = Path(__file__).with_name("templates")
LAST = 90
"""Plugins are called in order of their names as text, and there 100 is before 20."""

# By kind: the templates, and where what is made of them goes.
KINDS = {
    "python": {"python.py": "plugins/@plugin@.py"},
    "async": {"async.py": "plugins/@plugin@.py"},
    "cython": {
        "cython.py": "plugins/@plugin@/__init__.py",
        "cython.pyx": "plugins/@plugin@/_hooks.pyx",
        "setup.py": "plugins/@plugin@/setup.py",
    },
    "c": {"c.c": "@module@.c", "Makefile": "Makefile"},
}
PACKAGES = {
    "python": {"python.py": "@module@.py", "pyproject.toml": "pyproject.toml"},
    "async": {"async.py": "@module@.py", "pyproject.toml": "pyproject.toml"},
    "cython": {
        "cython.py": "@module@/__init__.py",
        "cython.pyx": "@module@/_hooks.pyx",
        "setup.py": "setup.py",
        "pyproject.toml": "pyproject.toml",
    },
}
"""The same with --package. A shared object in C is nothing that an entry point could name."""
PLUGIN = {
    "python": "plugins/@plugin@.py",
    "async": "plugins/@plugin@.py",
    "cython": "plugins/@plugin@",
    "c": "plugins/@plugin@.so",
}
BUILD = {"cython": "cd plugins/@plugin@ && python setup.py build_ext --inplace", "c": "make"}


def add_to(commands: Commands) -> None:
    new = commands.add_parser("new", help="write a plugin to begin with, and a test of it")
    new.add_argument("name", metavar="NAME", help="of the plugin, as greylist; a number is put before it")
    new.add_argument("--kind", choices=tuple(KINDS), default="python", help="what it is written in (default: python)")
    packages = ", ".join(PACKAGES)
    new.add_argument("--package", action="store_true", help=f"a package to install, with an entry point ({packages})")
    new.set_defaults(command=write_plugin, parser=new)


def write_plugin(options: argparse.Namespace) -> int:
    if re.match(r"\d", options.name):
        options.parser.error(
            f"{options.name!r} begins with a digit; the number of its place is put before it, so give the name alone, as "
            "my-greylist"
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", options.name):
        options.parser.error(f"{options.name!r} is no name for it: small letters, digits and dashes, as my-greylist")
    if options.package and options.kind not in PACKAGES:
        options.parser.error(
            f"--package is for --kind {', '.join(PACKAGES)}, and not for {options.kind}: an entry point names what Python can "
            "import; give the shared object to --plugins"
        )
    try:
        plugin = f"{_next_number()}-{options.name}"
        words = {"name": options.name, "plugin": plugin, "module": options.name.replace("-", "_")}
        written = _texts(options, words)
        config = _config(words)
    except ValueError as error:
        options.parser.error(str(error))
    there = [str(path) for path in written if path.exists()]
    if there:
        listed = ", ".join(there)
        options.parser.error(f"{listed}: there already, and nothing is overwritten; take another name, or move them away")
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)
    CONFIG.write_text(config)
    print(f"{CONFIG}: [plugins.{plugin}]")
    _tell_how_to_go_on(options, words)
    return OK


def _next_number() -> int:
    """The next ten behind the numbers of the plugins that are there."""
    names = [path.name for path in FOLDER.iterdir()] if FOLDER.is_dir() else []
    numbers = [int(found[0]) for name in names if (found := re.match(r"\d+(?=-)", name))]
    number = max(numbers, default=0) // 10 * 10 + 10
    if number > LAST:
        raise ValueError(f"{FOLDER} has a plugin with the number {max(numbers)}, and there is no ten after it; rename some")
    return number


def _texts(options: argparse.Namespace, words: dict[str, str]) -> dict[Path, str]:
    """What is to be written, by path."""
    sources, plugin = KINDS[options.kind], PLUGIN[options.kind]
    if options.package:
        plugin = "@module@" if options.kind == "cython" else "@module@.py"
        sources = PACKAGES[options.kind]
    words = words | {"path": _filled(plugin, words)} | _words_for_building(options, words["module"])
    sources = sources | {"test.py": "test_@module@.py"}
    return {Path(_filled(path, words)): _filled(_template(name), words) for name, path in sources.items()}


def _words_for_building(options: argparse.Namespace, module: str) -> dict[str, str]:
    if options.kind != "cython":
        return {"requires": '"setuptools>=77"', "contents": f'py-modules = ["{module}"]'}
    folder = module if options.package else ""
    return {
        "requires": '"Cython>=3.1", "mqcore", "setuptools>=77"',
        "contents": f'packages = ["{module}"]',
        "extension": ".".join(filter(None, [folder, "_hooks"])),
        "source": "/".join(filter(None, [folder, "_hooks.pyx"])),
    }


def _config(words: dict[str, str]) -> str:
    """The file as it is, with the plugin's table behind it."""
    before = CONFIG.read_text() if CONFIG.exists() else ""
    text = before + ("\n" if before else "") + _filled(_template("config.toml"), words)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{CONFIG} cannot have a table [plugins.{words['plugin']}] behind what is there: {error}") from None
    return text


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.in").read_text()


def _filled(text: str, words: dict[str, str]) -> str:
    """With the words in the place of @their names@."""
    return re.sub(r"@(\w+)@", lambda found: words[found[1]], text)


def _tell_how_to_go_on(options: argparse.Namespace, words: dict[str, str]) -> None:
    print()
    if options.package and options.kind in BUILD:
        print("pip install 'Cython>=3.1' 'setuptools>=77'")
        print("pip install --no-build-isolation -e '.[test]'")  # it is for the mqcore that is installed
    elif options.package:
        print("pip install -e '.[test]'")
    elif options.kind in BUILD:
        print(_filled(BUILD[options.kind], words))
    print("pytest")
    if options.package:
        print(f"mqcore check --config {CONFIG} --entry-points")
    else:
        print(f"mqcore check --config {CONFIG} {FOLDER}")
