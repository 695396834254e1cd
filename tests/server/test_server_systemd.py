"""What systemd is told, the sockets that it passes on, and the units in contrib/."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cli_tools import finish, serve, wait_until
from free_ports import free_port
from mail_tools import COMMAND, Process, run, start

from mqcore.mail import SmtpSource, SourceError, activation
from mqcore.server import systemd

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Where systemd listens."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as server:
        server.bind(str(tmp_path / "notify"))
        server.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield lambda: server.recv(4096).decode().split("\n")


def test_from_ready_to_stopping(told, tmp_path):
    hook = "def mq_smtp_in_data(context, message, mime): pass\n"
    (tmp_path / "10-a.py").write_text(hook)
    with serve("--to", "null:", "--plugins", tmp_path / "10-a.py") as server:
        assert told() == ["READY=1", f"STATUS=listening on {server.url}"]
        for source in (hook, "1 +"):
            (tmp_path / "10-a.py").write_text(source)
            server.process.send_signal(signal.SIGHUP)
            reloading, at = told()
            assert reloading == "RELOADING=1"
            assert re.fullmatch(r"MONOTONIC_USEC=\d+", at)
            assert told() == ["READY=1"]
        server.process.send_signal(signal.SIGTERM)
        assert told()[0] == "STOPPING=1"
        assert finish(server.process).returncode == 0


def test_of_workers_only_the_supervisor_tells(told, monkeypatch):
    """Ready when all are, also after a reload; the supervisor is the process that systemd watches."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    heard = []

    def next_but_the_watchdog():
        while (said := told()) == ["WATCHDOG=1"]:
            heard.append(said)
        return said

    with serve("--to", "null:", "--workers", 2) as server:
        assert next_but_the_watchdog() == ["READY=1", f"STATUS=2 workers listening on {server.url}"]
        server.process.send_signal(signal.SIGHUP)
        assert next_but_the_watchdog()[0] == "RELOADING=1"
        assert next_but_the_watchdog() == ["READY=1"]
        server.process.send_signal(signal.SIGTERM)
        assert next_but_the_watchdog() == ["STOPPING=1"]
        assert finish(server.process).returncode == 0
    assert heard


@pytest.mark.parametrize("pid", [None, "1"])
def test_the_loop_says_that_it_turns(told, monkeypatch, pid):
    """Twice in the time after which systemd would end it; unless systemd waits for another process."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    with serve("--to", "null:") as server:
        assert told()[0] == "READY=1"
        if pid is None:
            assert [told() for _ in range(3)] == [["WATCHDOG=1"]] * 3
        else:
            server.process.send_signal(signal.SIGHUP)
            assert told()[0] == "RELOADING=1"


@pytest.mark.parametrize("time", ["", "0", "-5", "soon", "٣"])
def test_systemd_does_not_wait(monkeypatch, time):
    monkeypatch.setenv("WATCHDOG_USEC", time)
    assert systemd.watchdog_interval() is None


def test_draining_is_no_stop_yet(told, tmp_path, monkeypatch):
    """systemd would end it after TimeoutStopSec."""
    with serve("--to", "null:", "--control", tmp_path / "control.sock") as server:
        told()
        assert run("ctl", "--socket", tmp_path / "control.sock", "drain").returncode == 0
        assert told() == [f"STATUS=draining {server.url}"]
        server.process.wait(30)
        server.stop()


@pytest.mark.parametrize("path", ["", "relative", "/no/such/socket", "@mqcore-nobody-listens-here"])
def test_nobody_wants_to_know(monkeypatch, path):
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    systemd.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("READY=1")


def test_what_systemd_must_not_miss_waits_for_it(told):
    for _ in range(20):  # more than it takes in advance
        systemd.notify(systemd.ALIVE)
    telling = threading.Thread(target=systemd.notify, args=("READY=1",))
    telling.start()
    while (said := told()) == [systemd.ALIVE]:
        pass
    assert said == ["READY=1"]
    telling.join()


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_socket(monkeypatch):
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as server:
        server.bind(f"\0mqcore-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@mqcore-test-{os.getpid()}")
        systemd.notify("READY=1", "STATUS=\udcff")
        assert server.recv(100) == b"READY=1\nSTATUS=?"


# Sockets that are passed on


@pytest.fixture
def passed(monkeypatch):
    """As if systemd had passed on these."""

    def pass_on(*sockets):
        first = 1000
        for number, one in enumerate(sockets, first):
            os.dup2(one.fileno(), number)
            one.close()
        monkeypatch.setattr(activation, "FIRST", first)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", str(len(sockets)))
        monkeypatch.setenv("LISTEN_FDNAMES", "smtp")

    return pass_on


def listening(family=socket.AF_INET, address=("127.0.0.1", 0), *, both=False):
    one = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
    one.bind(address)
    one.listen()
    return one


def test_they_are_taken_once(passed, tmp_path):
    sockets = [listening(), listening(socket.AF_INET6, ("::1", 0)), listening(socket.AF_UNIX, str(tmp_path / "smtp.sock"))]
    ports = [one.getsockname()[1] for one in sockets[:2]]
    passed(*sockets)
    with contextlib.closing(SmtpSource("systemd", hostname="mx.example.org")) as source:
        assert [one.getsockname()[1] for one in source.listeners[:2]] == ports
        assert [one.get_inheritable() for one in source.listeners] == [False] * 3
        assert (source.port, source.url) == (ports[0], "smtp:systemd")
        assert "LISTEN_FDS" not in os.environ
        with pytest.raises(SourceError, match="systemd passes no socket on to smtp:systemd: start it by a .socket unit"):
            SmtpSource("systemd", hostname="mx.example.org")
    assert (tmp_path / "smtp.sock").exists()  # it is systemd's


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: listening(socket.AF_INET6, ("::", 0), both=True), "write BindIPv6Only=ipv6-only"),
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "write ListenStream= and Accept=no"),
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM), "write ListenStream= and Accept=no"),
    ],
)
def test_sockets_that_will_not_do(passed, make, text):
    passed(make())
    with pytest.raises(SourceError, match=text):
        SmtpSource("systemd", hostname="mx.example.org")


@pytest.mark.parametrize(("number", "count"), [("1", "1"), ("", "1"), (None, "x"), (None, "-1"), (None, "٣")])
def test_sockets_of_another_process(monkeypatch, number, count):
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if number is None else number)
    monkeypatch.setenv("LISTEN_FDS", count)
    assert activation.take_sockets() == []


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="needs systemd-socket-activate")
@pytest.mark.parametrize(("scheme", "workers"), [("smtp", ()), ("lmtp", ()), ("smtp", ("--workers", 2))])
def test_with_systemd_socket_activate(scheme, workers):
    port = free_port()
    environment = [f"--setenv={name}" for name in ("PYTHONPATH", "PYTHONMALLOC") if name in os.environ or name == "PYTHONPATH"]
    under = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", *environment]
    arguments = ("run", "--from", f"{scheme}:systemd", "--to", "null:", "--hostname", "mx.example.org", "--json", *workers)
    with start(*arguments, under=under) as process:
        replies = []

        def answered():
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 30) as client:
                replies.append(client.recv(100))
            return replies

        wait_until(answered, process)
        assert replies[0].startswith(b"220 mx.example.org")
        process.send_signal(signal.SIGTERM)
        assert finish(process).returncode == 0


# The units


def units(tmp_path):
    """Copies of them, as systemd-analyze wants the program to be there."""
    program = shutil.which("true")
    for unit in (ROOT / "contrib").glob("mqcore.*"):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/mqcore", program))
    return [str(tmp_path / "mqcore.service"), str(tmp_path / "mqcore.socket")]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_units(tmp_path):
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    # From 0, safe, to 10.
    secure = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(tmp_path / "mqcore.service")]
    checked = subprocess.run(secure, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout[-300:] + checked.stderr


def test_the_options_of_the_unit_are_options():
    (line,) = re.findall(r"^ExecStart=/usr/bin/mqcore (.*)$", (ROOT / "contrib" / "mqcore.service").read_text(), re.MULTILINE)
    with Process([*COMMAND, "run", "--help"], stdout=subprocess.PIPE, text=True) as process:
        known, _ = process.communicate(timeout=60)
    assert set(re.findall(r"--[a-z-]+", line)) <= set(re.findall(r"--[a-z-]+", known))
