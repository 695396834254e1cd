"""What the tests of metrics share: a server that shows its figures, in the test's own loop, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from smtp_tools import Serving, serving

from mqcore.server import Server
from mqcore.server.exposition import OPENMETRICS
from mqcore.server.http import HttpServer

Labels = frozenset[tuple[str, str]]


class Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Browser:
    """One connection, which sends exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def response(self, *, has_body: bool = True) -> Response:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")[:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers["content-length"])) if has_body else b""
        return Response(int(first.split()[1]), headers, body)

    async def ask(self, data: bytes, **options: Any) -> Response:
        self.writer.write(data)
        return await self.response(**options)

    async def get(self, path: str, host: str = "localhost", **headers: str) -> Response:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())

    async def is_closed(self) -> bool:
        """Wait until the server has closed the connection; what came before is dropped."""
        with contextlib.suppress(ConnectionError):
            await self.reader.read()
        return True


class Shown:
    def __init__(self, it: Serving, http: HttpServer) -> None:
        self.it = it
        self.http = http
        self._browsers: list[Browser] = []

    async def connect(self) -> Browser:
        address = self.http._sockets[0].getsockname()
        if isinstance(address, str):
            browser = Browser(*await asyncio.open_unix_connection(address))
        else:
            browser = Browser(*await asyncio.open_connection(*address[:2]))
        self._browsers.append(browser)
        return browser

    async def get(self, path: str, **options: Any) -> Response:
        return await (await self.connect()).get(path, **options)

    async def series(self) -> dict[tuple[str, Labels], float]:
        """What a scrape says now, as prometheus_client reads both formats, which agree."""
        self.http._fresh.clear()
        found = []
        for accept, parse in (("text/plain", parse_text), ("application/openmetrics-text", parse_openmetrics)):
            text = (await self.get("/metrics", Accept=accept)).body.decode()
            samples = [sample for family in parse(text) for sample in family.samples]
            found.append({(one.name, frozenset(one.labels.items())): one.value for one in samples})
            assert len(found[-1]) == len(samples)
        ours = [{key: value for key, value in each.items() if key[0].startswith("mqcore_")} for each in found]
        assert ours[0].keys() == ours[1].keys()
        return ours[1]

    async def status(self) -> dict[str, Any]:
        self.http._fresh.clear()
        status: dict[str, Any] = json.loads((await self.get("/status.json")).body)
        return status

    def leave(self) -> None:
        for browser in self._browsers:
            browser.writer.transport.abort()


def value(series: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


@contextlib.asynccontextmanager
async def shown(plugins: Any = None, *, address: Any = ("127.0.0.1", 0), **options: Any) -> AsyncIterator[Shown]:
    """The options are those of `serving`."""
    async with serving(plugins, **options) as it, HttpServer(Server(it.gateway), address) as http:
        shown = Shown(it, http)
        try:
            yield shown
        finally:
            shown.leave()


__all__ = ["OPENMETRICS", "Browser", "Response", "Shown", "shown", "value"]
