"""The HTTP server that shows figures: it answers whoever may ask, changes nothing, and whatever its clients do takes little."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter

import pytest
from metrics_tools import OPENMETRICS, Browser, shown
from smtp_tools import ALL, Holds, run

from mqcore.server import http
from mqcore.server.address import parse_address, write_address
from mqcore.server.exposition import TEXT, choose


@run
async def test_what_there_is():
    async with shown() as it:
        browser = await it.connect()
        for path, kind in {
            "/metrics": TEXT,
            "/status.json": "application/json",
            "/healthz": "text/plain; charset=utf-8",
            "/readyz": "text/plain; charset=utf-8",
            "/": "text/html; charset=utf-8",
        }.items():
            response = await browser.get(path)
            assert (response.status, response.headers["content-type"]) == (200, kind)
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["x-content-type-options"] == "nosniff"
            head = await browser.ask(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), has_body=False)
            assert (head.status, head.headers["content-type"]) == (200, kind)
        assert (await browser.get("/healthz")).body == b"ok\n"
        assert (await browser.get("/../etc/passwd")).status == 404
        assert (await browser.get("/metrics?x=1", Accept=OPENMETRICS)).body.endswith(b"# EOF\n")


@run
async def test_ready_until_it_drains():
    plugin = Holds("message")
    async with shown({"10-hold": plugin}) as it:
        client = await it.it.connect()
        client.send(ALL)
        await it.it.until(lambda: plugin.held)
        assert (await it.get("/readyz")).status == 200
        it.it.gateway.drain()
        assert (await it.get("/readyz")).status == 503
        assert (await it.get("/healthz")).status == 200
        assert (await it.status())["ready"] is False
        plugin.release()


@run
async def test_nothing_can_be_changed():
    async with shown() as it:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"):
            browser = await it.connect()
            response = await browser.ask(f"{method} /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")
            assert await browser.is_closed()


@run
async def test_a_host_that_is_none_of_ours():
    """Against DNS rebinding: a browser says by which name it got here."""
    async with shown() as it:
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:99", socket.gethostname(), "localhost."):
            assert (await it.get("/metrics", host=host)).status == 200, host
        for host in ("", "evil.example", "evil.example:80", "127.0.0.2", "[::1]", "localhost.evil.example", "a@localhost"):
            for path in ("/", "/metrics", "/events", "/nothing"):
                assert (await it.get(path, host=host)).status == 403, host
        browser = await it.connect()
        assert (await browser.ask(b"GET /healthz HTTP/1.0\r\n\r\n")).status == 200  # as simple probes ask


@run
async def test_all_addresses_of_both_families():
    """Each client's own words for where it came to are those of this server, however it came."""
    async with shown(address=("::", 0)) as it:
        families = {one.family for one in it.http._sockets}
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            if family in families:
                port = it.http._sockets[0].getsockname()[1]
                browser = Browser(*await asyncio.open_connection(host, port))
                written = f"[{host}]" if ":" in host else host
                assert (await browser.get("/healthz", host=f"{written}:{port}")).status == 200
                browser.writer.close()
        assert socket.AF_INET in families


@run
async def test_each_address_of_a_name(monkeypatch):
    addresses = [("127.0.0.1", 0), ("127.0.0.2", 0)]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    lookup = socket.getaddrinfo

    def look_up(host, *more, **how):
        return found if host == "both" else lookup(host, *more, **how)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with shown(address=("both", 0)) as it:
        names = [one.getsockname() for one in it.http._sockets]
        assert names == [("127.0.0.1", names[0][1]), ("127.0.0.2", names[0][1])]
        for host, port in names:
            browser = Browser(*await asyncio.open_connection(host, port))
            assert (await browser.get("/healthz", host=host)).status == 200
            browser.writer.close()


@run
async def test_a_unix_socket(tmp_path):
    path = tmp_path / "metrics.sock"
    async with shown(address=str(path)) as it:
        assert it.http.url == f"unix:{path}"
        assert (await it.get("/metrics", host="whatever")).status == 200
    assert not path.exists()


@run
async def test_requests_behind_each_other_and_in_pieces():
    async with shown() as it:
        browser = await it.connect()
        one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        browser.writer.write(one * 50)
        assert [(await browser.response()).status for _ in range(50)] == [200] * 50
        for byte in one:
            browser.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await browser.response()).status == 200
        browser.writer.write(one + b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n" + one)
        assert [(await browser.response()).status for _ in range(2)] == [200, 413]
        assert await browser.is_closed()  # what a body might hide is not looked at
        browser = await it.connect()
        browser.writer.write(one)
        browser.writer.write_eof()
        assert (await browser.response()).status == 200
        assert await browser.is_closed()


@run
async def test_one_turn_of_the_loop_is_for_one_request():
    """So that no client keeps the mail waiting with a thousand requests at once."""
    async with shown() as it:
        browser = await it.connect()
        browser.writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        made = []
        write = it.http._write
        it.http._write = lambda kind: made.append(kind) or write(kind)
        for _ in range(100):
            await browser.response()
        assert len(made) < 50  # and who asks again within a moment gets the same


@run
async def test_one_turn_of_the_loop_is_for_one_request_of_all_clients():
    """Else as many as there may be would keep it busy."""
    async with shown() as it:
        turn, answered = 0, []
        loop = asyncio.get_running_loop()

        def count():
            nonlocal turn
            turn += 1
            loop.call_soon(count)

        answer = it.http.answer
        it.http.answer = lambda request, **how: answered.append(turn) or answer(request, **how)
        browsers = [await it.connect() for _ in range(20)]
        count()
        for browser in browsers:
            browser.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        for browser in browsers:
            for _ in range(20):
                assert (await browser.response()).status == 200
        assert len(answered) == 400
        assert max(Counter(answered).values()) <= 2  # uvloop calls what is due before and after what is read


@run
async def test_figures_of_many_plugins_are_written_in_portions():
    """And are those of one moment, for whoever asks."""
    async with shown({f"{number:03}-plugin": Holds("message") for number in range(60)}) as it:
        browsers = [await it.connect() for _ in range(3)]
        found = await asyncio.gather(*(browser.get("/status.json") for browser in browsers))
        assert len({response.body for response in found}) == 1
        status = json.loads(found[0].body)
        rows = [row["plugin"] for row in status["plugins"] if row["hook"] == "mq_smtp_in_message"]
        assert rows == [f"{number:03}-plugin" for number in range(60)]
        assert status["plugins"][0]["held_oldest"] is None and status["hold_times"][0] == 0.001
        head = await browsers[0].ask(b"HEAD /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n", has_body=False)
        assert int(head.headers["content-length"]) > 1000


@run
async def test_figures_that_cannot_be_written(monkeypatch, caplog):
    async with shown() as it:
        collect = it.http._shown._figures.collect
        it.http._shown._figures.collect = lambda: collect() | {"odd": object()}
        browser = await it.connect()
        assert (await browser.get("/status.json")).status == 500
        assert "Traceback" in caplog.text
        it.http._shown._figures.collect = collect
        assert (await it.get("/status.json")).status == 200


@run
async def test_clients_that_do_not_end_their_request(monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT", 0.05)
    monkeypatch.setattr(http, "SWEEP", 0.01)
    async with shown() as it:
        silent, slow = await it.connect(), await it.connect()
        slow.writer.write(b"GET / HTTP/1.1\r\n")
        idle = await it.connect()
        assert (await idle.get("/healthz")).status == 200
        assert await silent.is_closed()
        assert await slow.is_closed()
        assert (await idle.get("/healthz")).status == 200  # who has asked for something may think about the next
        assert len(it.http._connections) == 1


@run
async def test_clients_that_do_not_read(monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT", 0.05)
    monkeypatch.setattr(http, "SWEEP", 0.01)
    async with shown() as it:
        browser = await it.connect()
        browser.writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000)
        await it.it.until(lambda: it.http._connections)
        (connection,) = it.http._connections
        browser.reader._transport.pause_reading()
        await it.it.until(lambda: not it.http._connections)
        assert connection._transport.get_write_buffer_size() <= 4 * http.WRITE_BUFFER


@run
async def test_more_connections_than_there_may_be():
    """Who has been idle for longest makes room, so that nobody is kept out; and the mail goes on."""
    async with shown() as it:
        many = [await it.connect() for _ in range(3 * http.MAX_CONNECTIONS)]
        await it.it.until(lambda: len(it.http._connections) == http.MAX_CONNECTIONS)
        assert (await it.get("/metrics")).status == 200
        client = await it.it.connect()
        client.send(ALL)
        await it.it.until(lambda: it.it.sink.mails)
        assert await many[0].is_closed()
        assert len(it.http._connections) == http.MAX_CONNECTIONS


@run
async def test_who_asked_last_stays():
    async with shown() as it:
        browser = await it.connect()
        for _ in range(3):
            others = [await it.connect() for _ in range(http.MAX_CONNECTIONS - 1)]
            assert (await browser.get("/healthz")).status == 200
        assert others


@run
async def test_events(monkeypatch):
    monkeypatch.setattr("mqcore.server.history.PERIOD", 0.02)
    async with shown({"<script>": Holds("message")}) as it:
        browser = await it.connect()
        browser.writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await browser.reader.readuntil(b"\r\n\r\n")
        assert b"text/event-stream" in head and b"Connection: close" in head
        assert await browser.reader.readline() == b"event: history\n"
        history = json.loads((await browser.reader.readline()).removeprefix(b"data: "))
        assert len(history[0]) == 5
        times = []
        for _ in range(3):
            text = await browser.reader.readuntil(b"\n\n")
            event = json.loads(text.strip().removeprefix(b"data: "))
            times.append(event["point"][0])
            assert event["figures"]["plugins"][0]["plugin"] == "<script>"
        assert times == sorted(times)
        more = [await it.connect() for _ in range(http.MAX_WATCHERS)]
        for one in more:
            one.writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            said = await one.reader.readuntil(b"\n\n")
        assert b"event: full" in said and await one.is_closed()
        browser.writer.close()
        await it.it.until(lambda: len(it.http._watchers) == http.MAX_WATCHERS - 1)


@run
async def test_the_page_of_another_site_watches_nothing():
    """It could not read it, but it would take a place."""
    async with shown() as it:
        for site, status in (("cross-site", 403), ("same-site", 403), ("none", 403)):
            assert (await it.get("/events", **{"Sec-Fetch-Site": site})).status == status
        browser = await it.connect()
        browser.writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n\r\n")
        assert b"200 OK" in await browser.reader.readuntil(b"\r\n\r\n")
        assert (await it.get("/", **{"Sec-Fetch-Site": "cross-site"})).status == 200  # by a link


@run
async def test_who_watches_is_not_answered_any_more():
    """An answer within the events would be nonsense."""
    async with shown() as it:
        browser = await it.connect()
        browser.writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await browser.reader.readuntil(b"\n\n")
        browser.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        assert (await it.get("/healthz")).status == 200
        text = b""
        while text.count(b"\n\n") < 2:
            text += await browser.reader.read(1 << 20)
        assert b"HTTP/1.1" not in text


def test_the_page_has_nothing_from_outside():
    page = http.PAGE.decode()
    for word in ("http:", "https:", "src=", "href=", "@import", "url(", "innerHTML", "style=", "onclick"):
        assert word not in page
    assert "'unsafe" not in http.POLICY and "default-src 'none'" in http.POLICY


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8;q=0.5,text/plain;version=0.0.4;q=0.4", True),
        ("application/openmetrics-text;version=1.0.0;q=0.2,*/*;q=0.5", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=nan", False),
        (
            "application/vnd.google.protobuf;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,"
            "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            True,
        ),
    ],
)
def test_which_text_is_wanted(accept, is_open):
    assert choose(accept) == (OPENMETRICS if is_open else TEXT)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:9100", ("::1", 9100)),
        ("unix:/run/x.sock", "/run/x.sock"),
        ("unix:", None),
        ("9100", None),
        ("localhost:", None),
        ("localhost:99999", None),
        ("::1:9100", None),
        ("http://localhost:9100", None),
    ],
)
def test_addresses(text, address):
    if address is None:
        with pytest.raises(ValueError, match="HOST:PORT|needs a path"):
            parse_address(text)
    else:
        assert parse_address(text) == address
        assert parse_address(write_address(address)) == address
