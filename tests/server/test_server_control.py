"""The control socket: what it answers, whom it obeys, and what no client can do to the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from metrics_tools import Browser
from server_tools import steered
from smtp_tools import ALL, EHLO, OPEN, TEXT, Holds, codes, plugin, run

import mqcore
from mqcore.server import control
from mqcore.server.control import Control
from mqcore.server.durations import parse_duration, write_duration
from mqcore.server.held import PORTION, HeldMessages
from mqcore.server.http import HttpServer


async def holding(at, count, **options):
    """So many clients, whose mails are held."""
    clients = []
    for number in range(count):
        client = await at.it.greeted()
        mail = OPEN.removeprefix(EHLO).replace(b"a@", b"a%d@" % number)
        client.send(mail + TEXT + b".\r\n")
        clients.append(client)
        await at.it.until(lambda: at.server.dispatcher.stats().held == len(clients))
    return clients


@run
async def test_status_and_stats(tmp_path):
    async with steered(tmp_path, {"10-hold": Holds("message"), "20-see": plugin(data=lambda *_: None)}) as at:
        await holding(at, 2)
        status = await at.ask("status")
        assert status["state"] == "running"
        assert status["plugins"] == ["10-hold", "20-see"]
        assert status["steps"]["held"] == 2
        assert (status["in_flight"], status["in_flight_limit"]) == (2, 1000)
        assert status["mails"]["read"] == 2
        assert status["reloads"] == {"succeeded": 0, "failed": 0, "last": None, "error": None}
        assert 0 <= status["uptime"] < 600
        stats = await at.ask("stats")
        assert {row["plugin"]: row["holds"] for row in stats["plugins"] if row["calls"]} == {"10-hold": 2, "20-see": 0}
        assert await at.ask("order", hook="mq_smtp_in_data") == {"order": ["20-see"], "paused": []}
        assert (await at.refused("order", hook="mq_smtp_in_dat"))[1].startswith("no hook is named 'mq_smtp_in_dat'")


@run
async def test_held(tmp_path):
    async with steered(tmp_path, {"10-hold": Holds("message")}) as at:
        assert await at.ask("held") == {"held": 0, "oldest": []}
        await holding(at, 3)
        told = await at.ask("held")
        assert told["held"] == 3
        assert [row["envelope"] for row in told["oldest"]] == ["a0@example.org", "a1@example.org", "a2@example.org"]
        first = told["oldest"][0]
        assert (first["plugin"], first["hook"]) == ("10-hold", "mq_smtp_in_message")
        assert (first["peer"], first["recipient"]) == ("127.0.0.1", "b@example.org")
        assert first["age"] >= told["oldest"][1]["age"] >= 0
        assert set(first) == {"id", "plugin", "hook", "age", "peer", "envelope", "recipient"}
        assert (await at.ask("held", limit=2))["oldest"][1]["id"] == told["oldest"][1]["id"]
        assert len((await at.ask("held", plugin="10-hold", limit=2))["oldest"]) == 2
        assert (await at.ask("held", older="1h"))["oldest"] == []
        assert (await at.ask("held", older=3600, plugin="10-hold")) == {"held": 3, "oldest": []}
        assert len((await at.ask("held", older=0))["oldest"]) == 3
        kind, error = await at.refused("held", plugin="10-hol")
        assert (kind, "the nearest name is 10-hold" in error) == ("failed", True)


@run
async def test_held_before_there_is_a_mail(tmp_path):
    async with steered(tmp_path, {"10-hold": (holds := Holds("connect"))}) as at:
        client = await at.it.connect()
        await at.it.until(lambda: holds.held)
        (row,) = (await at.ask("held"))["oldest"]
        assert (row["hook"], row["peer"], row["envelope"], row["recipient"]) == ("mq_smtp_in_connect", "127.0.0.1", None, None)
        assert await at.ask("cancel", id=row["id"]) == {"cancelled": 1}
        assert (await client.reply()).startswith("421 4.3.0")


@run
async def test_held_of_odd_messages(tmp_path):
    """What a plugin made of it is not the operator's trouble."""

    def strange(context, message):
        message.envelope = "x" * 500 + "@example.org"
        message.json["recipient"] = 5
        return hold._hold(context, message)

    hold = Holds("message")
    async with steered(tmp_path, {"10-hold": plugin(message=strange)}) as at:
        client = await at.it.opened()
        client.send(TEXT + b".\r\n")
        await at.it.until(lambda: hold.held)
        (row,) = (await at.ask("held"))["oldest"]
        assert len(row["envelope"]) == 200
        await at.ask("cancel", id=row["id"])
        assert codes([await client.reply()]) == ["451 4.3.0"]


@run
async def test_ids_of_what_is_no_mail(tmp_path):
    """Each its own, and never another's, wherever it is in memory."""
    hold = {"mq_step": lambda context, message: True}
    with mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")]) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
        plugins.add("10-hold", SimpleNamespace(**hold))
        messages, step = HeldMessages(dispatcher), dispatcher.hook("mq_step")
        ids = []
        for _ in range(20):
            first, second = mqcore.Message(), mqcore.Message()
            step.run_many([first, second])
            found = [messages.describe(held)["id"] for held in await messages.oldest(10)]
            assert found == [messages.id_of(first), messages.id_of(second)]
            assert await messages.cancel(found[0]) == 1
            assert (first.holder, second.holder) == (None, "10-hold")
            assert await messages.cancel(found[0]) == 0
            dispatcher.cancel(second)
            ids += found
            del first, second
        assert len(set(ids)) == 40
        assert messages._numbers == {}


@run
async def test_many_are_told_of_in_portions():
    """The oldest first, as when few are asked for."""
    config = {f"{number}-hold": {"hold_timeout": 20 * number} for number in range(3)}
    specs = [mqcore.HookSpec("mq_step")]
    with mqcore.Plugins(hooks=specs, config=config) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
        for name in config:
            plugins.add(name, SimpleNamespace(mq_step=lambda context, message: message.payload == context.plugin.name[0]))
        messages, step = HeldMessages(dispatcher), dispatcher.hook("mq_step")
        made = [mqcore.Message(str(number % 3)) for number in range(3 * PORTION)]
        step.run_many(made)
        found = await messages.oldest(2 * PORTION)
        assert len(found) == 2 * PORTION
        assert [held.age for held in found] == sorted((held.age for held in found), reverse=True)
        assert {id(held.message) for held in found} <= set(map(id, made))
        assert len(await messages.oldest(4 * PORTION)) == 3 * PORTION
        for message in made:
            dispatcher.cancel(message)


@run
async def test_cancel(tmp_path):
    async with steered(tmp_path, {"10-hold": Holds("message")}) as at:
        clients = await holding(at, 3)
        ids = [row["id"] for row in (await at.ask("held"))["oldest"]]
        assert await at.ask("cancel", id=ids[1]) == {"cancelled": 1}
        assert codes([await clients[1].reply() for _ in range(4)])[-1] == "451 4.3.0"
        assert await at.refused("cancel", id=ids[1]) == ("failed", f"no message with the id {ids[1]} is held")
        assert await at.ask("cancel", plugin="10-hold", older="1h") == {"cancelled": 0}
        assert await at.ask("cancel", plugin="10-hold") == {"cancelled": 2}
        for client in (clients[0], clients[2]):
            assert codes([await client.reply() for _ in range(4)])[-1] == "451 4.3.0"
        assert at.server.dispatcher.stats().cancelled == 3
        for wrong in ({}, {"id": "x", "plugin": "10-hold"}, {"id": "x", "older": 5}, {"older": 5}):
            assert (await at.refused("cancel", **wrong))[0] == "usage"


@run
async def test_cancel_while_others_do(tmp_path):
    async with steered(tmp_path, {"10-hold": Holds("message")}) as at:
        clients = await holding(at, 8)
        counts = await asyncio.gather(*(at.ask("cancel", plugin="10-hold") for _ in range(4)), at.ask("held", plugin="10-hold"))
        assert sum(count["cancelled"] for count in counts[:4]) == 8
        for client in clients:
            assert codes([await client.reply() for _ in range(4)])[-1] == "451 4.3.0"


@run
async def test_pause_and_resume(tmp_path):
    async with steered(tmp_path, {"10-no": plugin(message=lambda context, message: message.reject(550, "5.7.1 no"))}) as at:
        client = await at.it.greeted()
        message = ALL.removeprefix(EHLO)
        assert (await client.asks(message, 4))[-1] == "550 5.7.1"
        assert await at.ask("pause", plugin="10-no") == {"paused": ["10-no"]}
        assert await at.ask("order", hook="mq_smtp_in_message") == {"order": [], "paused": ["10-no"]}
        assert (await client.asks(message, 4))[-1] == "250 2.6.0"
        assert await at.ask("resume", plugin="10-no") == {"paused": []}
        assert (await client.asks(message, 4))[-1] == "550 5.7.1"
        assert (await at.refused("pause", plugin="10-on"))[0] == "failed"


@run
async def test_reload(tmp_path):
    (tmp_path / "10-a.py").write_text("")
    async with steered(tmp_path) as at:
        at.server.plugins.load(tmp_path / "10-a.py")
        told = await at.ask("reload")
        assert (told["plugins"], told["changed"], told["needs_restart"]) == (1, [], [])
        (tmp_path / "10-a.py").write_text("1 +")
        kind, error = await at.refused("reload")
        assert kind == "reload"
        assert "10-a.py" in error


@run
async def test_drain(tmp_path):
    """What is open ends, however long it takes; nobody new comes in."""
    async with steered(tmp_path, {"10-hold": (holds := Holds("message"))}) as at:
        (client,) = await holding(at, 1)
        idle = await at.it.greeted()
        assert await at.ask("drain") == {"in_flight": 1}
        assert at.server.draining
        assert (await idle.reply()).startswith("421 4.3.2")
        await at.it.until(lambda: refuses(at.it.port))
        assert (await at.ask("status"))["state"] == "draining"
        assert not at.it.gateway.is_stopping
        holds.release()
        assert codes([await client.reply() for _ in range(4)])[-1] == "250 2.6.0"
        assert await client.is_closed()


def refuses(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


@run
async def test_drain_with_a_timeout(tmp_path):
    async with steered(tmp_path, {"10-hold": Holds("message")}) as at:
        (client,) = await holding(at, 1)
        await at.ask("drain", timeout="1h")
        assert not at.it.gateway.is_stopping
        await at.ask("drain", timeout="1ms")
        assert codes([await client.reply() for _ in range(4)])[-1] in ("451 4.3.0", "421 4.3.2")
        assert at.it.gateway.is_stopping


@run
async def test_stop(tmp_path):
    async with steered(tmp_path, {"10-hold": (holds := Holds("message"))}) as at:
        (client,) = await holding(at, 1)
        assert await at.ask("stop") == {"in_flight": 1}
        assert (await at.ask("status"))["state"] == "stopping"
        await at.ask("drain")  # there is nothing left to it
        holds.release()
        assert codes([await client.reply() for _ in range(4)])[-1] == "250 2.6.0"


# Whom it obeys


@run
async def test_its_mode(tmp_path):
    before = os.umask(0)
    try:
        async with steered(tmp_path) as at:
            assert stat.S_IMODE(at.path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert not at.path.exists()


@run
async def test_one_that_was_killed_left_its_socket(tmp_path):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(tmp_path / "control.sock"))
    async with steered(tmp_path) as at:
        assert (await at.ask("status"))["state"] == "running"
        with pytest.raises(OSError, match="Address already in use"):
            Control(at.server, str(at.path))
        assert (await at.ask("status"))["state"] == "running"


ELSE = """
import contextlib, os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as client:
    try:
        client.connect(sys.argv[1])
    except PermissionError:
        print("may not connect")
    else:
        with contextlib.suppress(BrokenPipeError):
            client.sendall(b'{"command": "stop"}\\n')
        print(client.recv(1000).decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_somebody_else(mode):
    """Not even where the file lets him, as on systems that do not look at its mode."""

    @run
    async def refused():
        async with steered(folder) as at:
            at.path.chmod(mode)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", ELSE, str(at.path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            out, _ = await asyncio.wait_for(process.communicate(), 30)
            expected = b"may not connect" if mode == 0o600 else b"is steered by the user who runs it (uid 0)"
            assert expected in out
            assert not at.server.draining

    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are for nobody else
        folder = Path(name)
        folder.chmod(0o755)
        refused()


# What clients send

WRONG = [
    (b"\n", "a request is a line of JSON"),
    (b"status\n", "a request is a line of JSON"),
    (b'{"command": "status"\n', "a request is a line of JSON"),
    (b"\xff\xfe\x00\n", "a request is a line of JSON"),
    (b"[" * 60_000 + b"\n", "a request is a line of JSON"),
    (b'{"a":' * 10_000 + b"\n", "a request is a line of JSON"),
    (b"1" * 60_000 + b"\n", "a request is a line of JSON"),
    (b"[1]\n", 'a request is an object with a "command"'),
    (b"null\n", 'a request is an object with a "command"'),
    (b"{}\n", 'a request is an object with a "command"'),
    (b'{"command": ["status"]}\n', 'a request is an object with a "command"'),
    (b'{"command": "statu"}\n', "no command is named 'statu'; there are status, stats"),
    (b'{"command": "__init__"}\n', "no command is named"),
    (b'{"command": "_reload"}\n', "no command is named"),
    (b'{"command": "status", "self": 1}\n', "status does not take 'self'"),
    (b'{"command": "held", "limit": "5"}\n', "limit of held is wrong: a whole number from 1 to 10000"),
    (b'{"command": "held", "limit": true}\n', "limit of held is wrong"),
    (b'{"command": "held", "limit": 0}\n', "limit of held is wrong"),
    (b'{"command": "held", "limit": 1e99}\n', "limit of held is wrong"),
    (b'{"command": "held", "older": NaN}\n', "older of held is wrong"),
    (b'{"command": "held", "older": -1}\n', "older of held is wrong"),
    (b'{"command": "held", "older": 1e999}\n', "older of held is wrong"),
    (b'{"command": "held", "older": "10 parsecs"}\n', "'10 parsecs' is no duration; write 500ms, 10s, 5m or 2h"),
    (b'{"command": "held", "older": [[]]}\n', "older of held is wrong"),
    (b'{"command": "held", "plugin": ""}\n', "plugin of held is wrong"),
    (b'{"command": "held", "plugin": "\\ud800\\u0000"}\n', "no plugin is named"),
    (b'{"command": "cancel", "id": {}}\n', "id of cancel is wrong"),
    (b'{"command": "order"}\n', "order needs 'hook'"),
    (b'{"command": "order", "hook": 5}\n', "hook of order is wrong"),
    (b"x" * (control.LONGEST_LINE + 1) + b"\n", "a request is at most 65536 octets long"),
    (b"x" * (4 * control.LONGEST_LINE), "a request is at most 65536 octets long"),
]


def test_wrong_requests(tmp_path):
    @run
    async def ask():
        async with steered(tmp_path) as at:
            for data, text in WRONG:
                answer = await at.send(data)
                assert not answer["ok"], data
                assert text in answer["error"], (data[:100], answer)
                assert len(answer["error"]) < 500, data[:100]
            assert (await at.ask("status"))["state"] == "running"

    ask()


@run
async def test_half_lines_and_disconnects(tmp_path):
    async with steered(tmp_path) as at:
        reader, writer = await at.connect()
        for octet in b'{"command": "status"}':
            writer.write(bytes([octet]))
            await asyncio.sleep(0)
        writer.write(b"\n")
        assert json.loads(await reader.readline())["ok"]
        writer.write(b'{"command": "order", "hook": "mq_smtp_in_data"}')
        writer.write_eof()  # with the end in place of a line end
        assert json.loads(await reader.readline())["result"]["order"] == []
        assert await reader.read() == b""
        writer.close()
        for _ in range(100):
            _, writer = await at.connect()
            writer.write(b'{"command": "held"}\n{"comm')
            writer.transport.abort()
        assert (await at.ask("status"))["state"] == "running"


@run
async def test_many_requests_at_once_leave_the_loop_its_turns(tmp_path):
    async with steered(tmp_path) as at:
        reader, writer = await at.connect()
        writer.write(b'{"command": "order", "hook": "mq_smtp_in_data"}\n' * 5000)
        client = await at.it.greeted()
        answer = b'{"ok": true, "result": {"order": [], "paused": []}}\n'
        answered = asyncio.ensure_future(reader.readexactly(5000 * len(answer)))
        assert (await client.asks(ALL.removeprefix(EHLO), 4))[-1] == "250 2.6.0"
        assert not answered.done()  # the mail did not have to wait for them
        assert (await answered).count(b"\n") == 5000
        writer.close()


@run
async def test_a_client_that_never_reads(tmp_path):
    """No more of its requests is read than there is room for answers."""
    async with steered(tmp_path, {"10-hold": Holds("message")}) as at:
        _, writer = await at.connect()
        request = b'{"command": "nonsense"}\n' * 1000
        sent = 0
        while sent < 1 << 24:
            writer.write(request)
            sent += len(request)
            try:
                await asyncio.wait_for(writer.drain(), 0.3)
            except TimeoutError:
                break
        assert sent < 1 << 23
        assert (await at.ask("status"))["state"] == "running"
        writer.transport.abort()


@run
async def test_more_clients_than_there_may_be(tmp_path):
    async with steered(tmp_path) as at:
        clients = [await at.connect() for _ in range(control.MOST_CLIENTS)]
        for reader, writer in clients:
            writer.write(b'{"command": "status"}\n')
            assert json.loads(await reader.readline())["ok"]
        assert (await at.ask("status"))["state"] == "running"  # the one that was idle for longest made room
        with contextlib.suppress(ConnectionError):
            assert await clients[0][0].read() == b""
        clients[0][1].close()
        await at.it.until(lambda: len(at.control._clients) == control.MOST_CLIENTS - 1)
        release = asyncio.Event()
        at.control._commands.run = lambda *_: release.wait()
        clients[0] = await at.connect()
        for _, writer in clients:
            writer.write(b'{"command": "status"}\n')
        await at.it.until(lambda: len(at.control._clients) == control.MOST_CLIENTS and not at.control._idle)
        reader, writer = await at.connect()
        assert "32 others are connected" in json.loads(await reader.readline())["error"]
        assert await reader.read() == b""
        writer.close()
        release.set()
        for reader, writer in clients:
            assert json.loads(await reader.readline())["ok"]
            writer.close()


def test_durations_as_people_write_them():
    written = {0: "0 s", 2.5e-8: "25 ns", 8e-6: "8 us", 1.25e-3: "1.25 ms", 0.05: "50 ms", 75.2: "75.2 s", 12_345.6: "12346 s"}
    assert {seconds: write_duration(seconds) for seconds in written} == written


def test_durations():
    right = {"500ms": 0.5, "10s": 10.0, "5m": 300.0, "2h": 7200.0, "10": 10.0, "0.5s": 0.5, "0": 0.0}
    assert {text: parse_duration(text) for text in right} == right
    for wrong in ("", "s", "-1s", "1 s", "1d", "1e5", "inf", "nan", "1s5", "٣s", "9" * 400, "999999999999h", "1.s", "1s\n"):
        with pytest.raises(ValueError, match="is no duration; write 500ms"):
            parse_duration(wrong)


@run
async def test_a_client_of_whom_nothing_can_be_known(tmp_path, monkeypatch):
    def fails(client):
        raise OSError(107, "Transport endpoint is not connected")

    async with steered(tmp_path) as at:
        with monkeypatch.context() as patch:
            patch.setattr(control, "peer_uid", fails)
            reader, writer = await at.connect()
            assert await reader.read() == b""
            writer.close()
        assert (await at.ask("status"))["state"] == "running"


@pytest.mark.slow
@run
async def test_a_hundred_thousand_held(tmp_path):
    """All of it is told of, and right; whatever has to look at all of them leaves the loop its turns."""
    count = 100_000
    async with steered(tmp_path, {"10-hold": plugin(data=lambda context, message, *_: True)}) as at, HttpServer(
        at.server, ("127.0.0.1", 0)
    ) as http:
        made = [mqcore.Message() for _ in range(count)]
        at.server.dispatcher.hook("mq_smtp_in_data").run_many(made, b"")
        told = await at.ask("held", limit=10_000)
        assert told["held"] == count
        assert [row["id"] for row in told["oldest"]] == [at.server.held.id_of(message) for message in made[:10_000]]
        ages = [row["age"] for row in told["oldest"]]
        assert ages == sorted(ages, reverse=True)
        told = await at.ask("held", plugin="10-hold", limit=3)
        assert [row["id"] for row in told["oldest"]] == [at.server.held.id_of(message) for message in made[:3]]
        rows = {row["hook"]: row["held"] for row in (await at.ask("figures"))["plugins"]}
        assert rows["mq_smtp_in_data"] == count
        browser = Browser(*await asyncio.open_connection(*http._sockets[0].getsockname()))
        text = (await browser.get("/metrics")).body.decode()
        assert f'mqcore_plugin_held{{plugin="10-hold",hook="mq_smtp_in_data"}} {count}\n' in text
        assert json.loads((await browser.get("/status.json")).body)["steps"]["held"] == count
        assert await at.ask("cancel", id=at.server.held.id_of(made[7])) == {"cancelled": 1}
        client = await at.it.greeted()
        cancelling = asyncio.ensure_future(at.ask("cancel", plugin="10-hold"))
        at.server.pause("10-hold")
        assert (await client.asks(ALL.removeprefix(EHLO), 4))[-1] == "250 2.6.0"
        assert not cancelling.done()
        assert await cancelling == {"cancelled": count - 1}
        browser.writer.close()
