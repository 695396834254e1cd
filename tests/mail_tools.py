"""What the tests of mail and of the command share: the command in a process of its own, and mails to feed it."""

from __future__ import annotations

import contextlib
import json
import mailbox
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

# What -X dev does, but for asyncio's debug mode: it warns when a slow machine takes long over a callback.
COMMAND = [sys.executable, "-P", "-X", "faulthandler", "-W", "error", "-m", "mqcore"]


NO_PLUGINS = "mqcore: there are no plugins\n"

TRACE = re.compile(
    rb"(?:Return-Path: <[^\r\n>]*>\r\nDelivered-To: [^\r\n]+\r\n)?(?:Received: from [^\r\n]+\r\n\tby [^\r\n]+ \(mqcore "
    rb"[0-9a-f]{16}\)\r\n\twith [^\r\n]+ id [0-9a-f]{32}(?:\r\n\tfor <[^\r\n]+>)?;\r\n\t[^\r\n]+\r\n)+"
)


def untraced(mails: Iterable[bytes]) -> list[bytes]:
    """Mails from the network, without the trace on top of them, which must be there."""
    texts = []
    for mail in mails:
        match = TRACE.match(mail)
        assert match is not None, mail
        texts.append(mail[match.end() :])
    return texts


class Process(subprocess.Popen[str]):
    """In a `with` whose test fails it is killed: it would be waited for, perhaps forever."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
        super().__exit__(kind, error, traceback)


def start(*arguments: object, under: Sequence[str] = (), **options: Any) -> Process:
    """The command, running; `under`: a command that is given it, and runs it."""
    # The package under test is the one that this process imports, wherever it is.
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"PYTHONPATH": path, "PYTHONMALLOC": "debug"}
    environment.pop("PYTHONUNBUFFERED", None)  # users have buffers, and what cannot be written shows late
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, **options}
    return Process([*under, *COMMAND, *map(str, arguments)], **options)


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command, when it is done."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def move(source: object, sink: object, *arguments: object, code: int = 0) -> dict[str, Any]:
    """What `mqcore run --json` says; it must end with the exit code `code`, and its figures must add up."""
    result = run("run", "--from", source, "--to", sink, "--json", *arguments)
    assert result.returncode == code, result
    assert code or result.stderr in ("", NO_PLUGINS), result
    return report(result)


def report(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(result.stdout)
    counts = figures["messages"]
    ends = ("present", "continued", "completed", "failed", "rejected", "discarded", "unfinished")
    assert counts["read"] == sum(counts[end] for end in ends), counts
    assert counts["stored"] == counts["continued"] + counts["completed"]
    return figures


def counted(figures: dict[str, Any]) -> dict[str, int]:
    """The counts that are not zero, without those that follow from others."""
    return {name: count for name, count in figures["messages"].items() if count and name not in ("read", "stored")}


def write_plugin(folder: Path, name: str, source: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(source))
    return path


def make_maildir(path: Path, mails: Iterable[bytes]) -> Path:
    for folder in ("tmp", "new", "cur"):
        (path / folder).mkdir(parents=True)
    for number, mail in enumerate(mails):
        (path / "new" / f"1700000000.M{number:06}.example").write_bytes(mail)
    return path


def read_maildir(path: Path) -> list[bytes]:
    """The mails in the order of their names, from new/ and cur/."""
    files = sorted((*(path / "new").iterdir(), *(path / "cur").iterdir()), key=lambda file: file.name)
    return [file.read_bytes() for file in files]


def write_mbox(path: Path, count: int, *, lines: int = 4) -> Path:
    """An mbox of so many generated mails, each of its own."""
    with path.open("wb") as file:
        for number in range(count):
            file.write(b"From sender%d@example.org Tue Nov 24 05:31:47 2026\n" % (number % 7))
            file.write(b"Subject: mail %d\nMessage-ID: <%d@example.org>\n\n" % (number, number))
            file.write(b"A line of text that is as long as lines of text are.\n" * lines + b"\n")
    return path


def read_mbox(path: Path) -> list[bytes]:
    """The mails as the standard library reads them, which leaves the quoting in."""
    with contextlib.closing(mailbox.mbox(path, create=False)) as box:
        return [box.get_bytes(key) for key in box.iterkeys()]


def real_mails() -> Iterator[tuple[str, bytes]]:
    """Mails that CPython's tests of `email` and Debian's SpamAssassin come with."""
    test_email = pytest.importorskip("test.test_email", reason="this Python comes without its test package")
    files = sorted(Path(test_email.__file__).parent.glob("data/msg_*.txt"))
    files += sorted(Path("/usr/share/doc/spamassassin/examples").glob("sample-*.txt"))
    for file in files:
        yield file.name, file.read_bytes()


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"may not mount a file system: {mounted.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)
