"""The blocks of code in the documentation: all pages, and what is in them.

A block whose first line names a file, as `# plugins/10-a.py` or `/* slow.c */`, is that file of its page; so is a file that a
page includes, under its caption. The files of a page lie in one folder, where its tests and its commands run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bench", "contrib", "docs", "examples")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$", re.DOTALL | re.MULTILINE
)
FILE = re.compile(r"(?:#|//|/\*) ([\w./-]+\.\w+)(?: \*/)?")


@dataclass(frozen=True)
class Block:
    """`language`: what stands behind the fence, such as `python`, or `{literalinclude} FILE`. `after`: the text between it and
    the block before, None if it is the first."""

    page: Path
    line: int
    language: str
    text: str
    after: str | None

    @property
    def name(self) -> str:
        """As in error messages of compilers."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]

    @property
    def file(self) -> str | None:
        """The path of the file that this is, if it says so."""
        if self.language.startswith("{literalinclude}"):
            caption = re.search(r"^:caption: (\S+)$", self.text, re.MULTILINE)
            return caption and caption[1]
        named = FILE.fullmatch(self.first_line)
        return named and named[1]

    @cached_property
    def content(self) -> str:
        """The text, or that of the file which is included."""
        if self.language.startswith("{literalinclude}"):
            return (self.page.parent / self.language.split()[1]).read_text()
        return self.text


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    end = None
    for found in FENCE.finditer(text):
        line = text[: found.start()].count("\n") + 1
        yield Block(page, line, found["info"].strip(), found["text"], None if end is None else text[end : found.start()])
        end = found.end()


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def output_of(block: Block) -> str | None:
    """What a block prints, which stands right below it."""
    following = BLOCKS.index(block) + 1
    below = BLOCKS[following] if following < len(BLOCKS) else None
    is_output = below and below.page == block.page and below.language == "text" and (below.after or "").strip() == ""
    return below.text if is_output else None


# Commands

OPERATORS = {"|", "||", "&&", "&", ";"}


def lines_of(text: str) -> Iterator[str]:
    """The command lines of a block for a shell; where it shows what they print, those behind a `$ `."""
    lines = re.sub(r"\\\n *", "", text).splitlines()
    shown = [line[2:] for line in lines if line.startswith("$ ")]
    yield from (line for line in shown or lines if line.strip() and not line.startswith("#"))


def commands_of(line: str) -> Iterator[list[str]]:
    """The words of each command in a line."""
    for inner in re.findall(r"\$\((.*?)\)", line):
        yield from commands_of(inner)
    lexer = shlex.shlex(re.sub(r"\$\(.*?\)", "SUBSTITUTED", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in OPERATORS:
            yield words
            words = []
        elif word in (">", ">>", "<"):
            next(lexer)
        else:
            words.append(word)
    if words:
        yield words


def program_of(words: list[str]) -> str:
    """Its name, without the folder; `python -m mqcore` is mqcore."""
    name = words[0].rpartition("/")[2]
    is_python = re.fullmatch(r"python[\d.]*", name) is not None
    if is_python and words[1:2] == ["-m"]:
        return words[2]
    return "python" if is_python else name
