"""Login and password for the next server."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..base import Option
from ..errors import SinkError, describe

CREDENTIALS = Option(
    "credentials",
    "login and password for the next server: a file with a line for each, or `env` for MQCORE_LOGIN and MQCORE_PASSWORD",
    "FILE",
)


class Credentials(NamedTuple):
    login: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.login!r}, ...)"


def read_credentials(where: str) -> Credentials:
    """Raises SinkError."""
    if where == "env":
        pair = os.environ.get("MQCORE_LOGIN", ""), os.environ.get("MQCORE_PASSWORD", "")
        if not all(pair):
            raise SinkError("--credentials env: MQCORE_LOGIN and MQCORE_PASSWORD must both be set")
        return Credentials(*pair)
    try:
        with open(where, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise SinkError(f"others may read {where}, which has a password in it; run chmod 600 {where}")
            lines = file.read(10_000).splitlines()
    except OSError as error:
        raise SinkError(f"cannot read {where}: {describe(error, where)}") from error
    except UnicodeDecodeError:
        lines = []
    if len(lines) < 2 or not all(lines[:2]) or any(lines[2:]) or "\0" in lines[0] + lines[1]:
        raise SinkError(f"{where} should have two lines, the login and the password")
    return Credentials(*lines[:2])
