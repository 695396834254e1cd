"""What plugins see of the client of a mail server that asks us."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from .._mail import Connection

if TYPE_CHECKING:
    from .session import Session


class MilterConnection(Connection):
    """The client's connection to the server, as the server tells of it. `transport` is None: a client is talked to by its
    server."""

    session: Session | None = None

    @property
    def macros(self) -> Mapping[str, str]:
        """What the server says beside, by the names of its macros without braces, as `{"i": "4XyZ"}`:
        of the connection, and of the message as far as it has come."""
        return MappingProxyType({} if self.session is None else self.session.protocol.macros)
