"""Login and password for the next server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..base import Option
from ..errors import SinkError, describe

CREDENTIALS = (
    Option("credentials", "login and password for the next server or the broker: a file with a line for each", "FILE"),
    Option("credentials-env", "the same from the environment: MQCORE_LOGIN and MQCORE_PASSWORD"),
)


class Credentials(NamedTuple):
    login: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.login!r}, ...)"


def check_credentials(path: str, given: Mapping[str, Any], scheme: str) -> None:
    """Raises ValueError."""
    names = [option.name for option in CREDENTIALS if option.name.replace("-", "_") in given]
    if len(names) > 1:
        raise ValueError("--credentials or --credentials-env; give one of them")
    if names and path.startswith("unix:"):
        raise ValueError(f"--{names[0]} is for --to {scheme}://HOST:PORT; they are sent under TLS only")
    if names and given.get("tls_out") in ("may", "none"):
        raise ValueError(f"--{names[0]}: they are sent under TLS only; with them --tls-out is verify (the default) or require")


def find_credentials(file: str | None, *, env: bool) -> Credentials | None:
    """None if there are to be none. Raises SinkError."""
    if env:
        pair = os.environ.get("MQCORE_LOGIN", ""), os.environ.get("MQCORE_PASSWORD", "")
        if not all(pair):
            raise SinkError("--credentials-env: MQCORE_LOGIN and MQCORE_PASSWORD must both be set")
        return Credentials(*pair)
    return None if file is None else _read(file)


def _read(where: str) -> Credentials:
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
