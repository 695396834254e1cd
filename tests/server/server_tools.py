"""What the tests of a server that is steered share: one that runs in the test's own loop, and its control socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trustme
from smtp_tools import Serving, serving

from mqcore.server import Server
from mqcore.server.control import Control
from mqcore.server.options import PlaceOptions


class Steered:
    """A server, what its configuration says for the source, and clients of its control socket."""

    def __init__(self, it: Serving, chosen: dict[str, Any], path: Path) -> None:
        self.it = it
        self.chosen = chosen
        self.path = path
        self.control: Control
        options = PlaceOptions([it.gateway.source], [dict(chosen)])
        self.server = Server(it.gateway, [lambda: options.prepare([dict(self.chosen)])])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path), limit=1 << 24)

    async def send(self, data: bytes) -> dict[str, Any]:
        """What it answers to these bytes."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            answer: dict[str, Any] = json.loads(await asyncio.wait_for(reader.readline(), 30))
            return answer
        finally:
            writer.close()

    async def ask(self, command: str, **arguments: Any) -> Any:
        answer = await self.send(json.dumps({"command": command, **arguments}).encode() + b"\n")
        assert answer["ok"], answer
        return answer["result"]

    async def refused(self, command: str, **arguments: Any) -> tuple[str, str]:
        answer = await self.send(json.dumps({"command": command, **arguments}).encode() + b"\n")
        assert not answer["ok"], answer
        return answer["kind"], answer["error"]


@contextlib.asynccontextmanager
async def steered(folder: Path, plugins: Any = None, **options: Any) -> AsyncIterator[Steered]:
    """`folder` is for the socket; the options are those of `serving`."""
    chosen = {name: options.pop(name) for name in ("tls_certificate", "tls_key") if name in options}
    async with serving(plugins, **chosen, **options) as it:
        await it.until(lambda: it.server is not None)
        steered = Steered(it, chosen, folder / "control.sock")
        async with Control(steered.server, str(steered.path)) as steered.control:
            yield steered


def issue(authority: trustme.CA, file: Path, name: str = "localhost") -> bytes:
    """Write a new certificate and its key to a file; what it is, as a client sees it."""
    made = authority.issue_cert(name)
    made.private_key_and_cert_chain_pem.write_to_path(file)
    return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
