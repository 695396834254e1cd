"""Two plain programs that do what `mqcore run` does: `python movers.py WAY MBOX SINK PLUGINS`.

WAY is "floor" or "standard library", SINK a new Maildir or "null:", PLUGINS a folder of plugins. Both call the plugins'
hooks in a Python loop, with the mail as bytes, and know nothing of plugins that wait, of mails that fail, or of a second
run that goes on where the first one ended.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
from collections.abc import Callable, Iterator

BLOCK = 1 << 20
DIVIDER = b"\nFrom "

Hooks = list[Callable[[None, bytes], object]]


def load(plugins: str) -> Hooks:
    """The hooks, in the order of the plugins' names."""
    return [runpy.run_path(f"{plugins}/{name}")["mq_smtp_in_message"] for name in sorted(os.listdir(plugins))]


def passed(hooks: Hooks, mail: bytes) -> bytes:
    """The mail, after all its hooks."""
    for hook in hooks:
        if hook(None, mail):
            break
    return mail


def move_by_mailbox(mbox: str, sink: str, hooks: Hooks) -> None:
    """As it is written in a few lines with the standard library, which brings each file to the disk by itself.

    The mails are not parsed: that would take ten times as long.
    """
    import mailbox  # takes a while, which the floor does not need

    source = mailbox.mbox(mbox, create=False)
    mails = (passed(hooks, source.get_bytes(key)) for key in source.iterkeys())
    if sink == "null:":
        for _ in mails:
            pass
    else:
        maildir = mailbox.Maildir(sink)
        for mail in mails:
            maildir.add(mail)


def split(mbox: str) -> Iterator[bytes]:
    """The mails of an mbox in which nothing is quoted."""
    with open(mbox, "rb", buffering=0) as file:
        rest = b""
        while block := file.read(BLOCK):
            *whole, rest = (rest + block).split(DIVIDER)
            for mail in whole:
                yield mail.partition(b"\n")[2]
        if rest:
            yield rest.removesuffix(b"\n").partition(b"\n")[2]


def move_by_hand(mbox: str, sink: str, hooks: Hooks) -> None:
    """The least that leaves the same mails as safely on the disk: no call that could be spared, one sync for all files
    and one for their folder."""
    mails = (passed(hooks, mail) for mail in split(mbox))
    if sink == "null:":
        for _ in mails:
            pass
        return
    for name in ("tmp", "new", "cur"):
        os.makedirs(f"{sink}/{name}")
    tmp, new = (os.open(f"{sink}/{name}", os.O_RDONLY | os.O_DIRECTORY) for name in ("tmp", "new"))
    names = []
    for number, mail in enumerate(mails):
        name = f"{number}.floor"
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=tmp)
        os.write(file, mail)
        os.close(file)
        names.append(name)
    if ctypes.CDLL(None).syncfs(tmp) != 0:
        raise OSError("the mails did not reach the disk")
    for name in names:
        os.rename(name, name, src_dir_fd=tmp, dst_dir_fd=new)
    os.fsync(new)


WAYS = {"floor": move_by_hand, "standard library": move_by_mailbox}

if __name__ == "__main__":
    way, mbox, sink, plugins = sys.argv[1:]
    WAYS[way](mbox, sink, load(plugins))
