"""What a server listens on beside its source: the control socket, and for metrics."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from ..mail.errors import SourceError
from ..mail.listening import explain
from ..server import Server
from ..server.address import Address, write_address

if TYPE_CHECKING:
    from ..server.control import Answerer
    from ..server.shown import Shown


@contextlib.asynccontextmanager
async def controlled(server: Server | Answerer, path: str | None) -> AsyncIterator[None]:
    """With a control socket, if there is to be one."""
    if path is None:
        yield
        return
    from ..server.control import Control  # takes its time

    with _listening(f"on the control socket {path}", path):
        control = Control(server, path)
    async with control:
        yield


@contextlib.asynccontextmanager
async def shown_at(server: Server | Shown, address: Address | None) -> AsyncIterator[str | None]:
    """With metrics, if there are to be any: where they are."""
    if address is None:
        yield None
        return
    from ..server.http import HttpServer  # takes its time

    with _listening(f"for --metrics on {write_address(address)}", address if isinstance(address, str) else address[1]):
        http = HttpServer(server, address)
    async with http:
        yield http.url


@contextlib.contextmanager
def _listening(what: str, where: int | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"cannot listen {what}: {explain(error, where)}") from error
