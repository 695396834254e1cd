"""`--user`: giving up root's privileges for good."""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
from collections.abc import Iterable

from ..mail.errors import SourceError, describe


def become_as_told(options: argparse.Namespace) -> None:
    """As `--user` says; wrong usage where that cannot be."""
    try:
        become(options.user)
    except ValueError as error:
        options.parser.error(f"--user {options.user}: {error}")


def check_readable(name: str, files: Iterable[str]) -> None:
    """Raise SourceError for one that this user, whom the process is by now, cannot read: that would be found at a reload."""
    for file in files:
        try:
            with open(file, "rb"):
                pass
        except OSError as error:
            raise SourceError(
                f"the user {name} cannot read {file}, as a reload has to: {describe(error, file)}; let him read it"
            ) from error


def become(name: str) -> None:
    """Be this user from now on, as he logs in, and never again who this was. Raises ValueError where that cannot be."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise ValueError(f"there is no user {name!r}") from None
    if user.pw_uid == 0:
        raise ValueError(f"{name} has root's privileges, which are to be given up; make a user for the server")
    if os.geteuid() == user.pw_uid == os.getuid():
        return
    if os.geteuid() != 0:
        raise ValueError(f"only root can become the user {name}")
    os.setgroups(os.getgrouplist(name, user.pw_gid))
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)  # as root, for the real, the effective and the saved one
    os.environ.update(HOME=user.pw_dir, USER=name, LOGNAME=name)
    _check(user)


def _check(user: pwd.struct_passwd) -> None:
    """That they cannot come back."""
    ids = {os.getuid(), os.geteuid()}, {os.getgid(), os.getegid()}
    if hasattr(os, "getresuid"):
        ids = {*os.getresuid()}, {*os.getresgid()}
    for get_back in (os.setuid, os.seteuid, os.setgid):
        with contextlib.suppress(OSError):
            get_back(0)
            raise RuntimeError(f"privileges could be got back after this became the user {user.pw_name}")
    if ids != ({user.pw_uid}, {user.pw_gid}):
        raise RuntimeError(f"this did not become the user {user.pw_name}: {ids}")
