"""`mqcore run --workers N`: several processes, one run."""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
import socket
import time
from pathlib import Path

import pytest
from cli_tools import TEXT, finish, serve, wait_until
from mail_tools import run, start, write_plugin
from prometheus_client.parser import text_string_to_metric_families

from mqcore.cli.ctl import exchange

PLUGIN = """
    import os
    import time

    def mq_smtp_in_message(context, message):
        text = message.mime
        if b"kill me" in text:
            os._exit(70)
        if b"be killed" in text:
            os.kill(os.getpid(), 9)
        if b"leave" in text:
            os._exit(0)
        if b"hold" in text:
            context.data.setdefault("held", []).append(message)
            context.log.warning("has it")
            return True
        return False
    """

REJECTS = """
    def mq_smtp_in_message(context, message):
        message.reject(550, "5.7.1 {}")
    """


def children(process) -> list[int]:
    """The workers."""
    return sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def connect(server):
    """A client. While no worker is ready it is told to come again."""
    give_up = time.monotonic() + 60
    while True:
        try:
            return server.client()
        except smtplib.SMTPConnectError as error:
            if error.smtp_code != 421 or time.monotonic() > give_up:
                raise
            time.sleep(0.05)


def held(server):
    """A client whose mail a plugin holds."""
    client = connect(server)
    client.ehlo()
    for command in ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA"):
        client.docmd(command)
    client.send(b"Subject: hold\r\n\r\nhold\r\n.\r\n")
    while "has it" not in (line := server.process.stderr.readline()):
        assert line, "it has ended"
    return client


def is_there(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def send(server, text=TEXT, count=1):
    for _ in range(count):
        with connect(server) as client:
            client.sendmail("a@example.org", ["b@example.org"], text)


def send_to_its_death(server, text):
    with pytest.raises(smtplib.SMTPServerDisconnected), connect(server) as client:
        client.sendmail("a@example.org", ["b@example.org"], text)


def test_one_run():
    with serve("--to", "null:", "--workers", 2) as server:
        pids = children(server.process)
        assert len(pids) == 2
        send(server, count=20)
    assert not any(map(is_there, pids))
    figures = server.figures
    assert (figures["messages"]["stored"], figures["crashes"], figures["restarts"]) == (20, 0, 0)
    assert [worker["starts"] for worker in figures["workers"]] == [1, 1]
    assert sum(worker["messages"]["stored"] for worker in figures["workers"]) == 20


def test_counts_are_exact_after_kill_9(tmp_path):
    folder = write_plugin(tmp_path / "plugins", "10-holds", PLUGIN).parent
    with serve("--to", "null:", "--workers", 2, "--plugins", folder) as server:
        send(server, count=5)
        with contextlib.closing(held(server)) as holding:
            (pid,) = [pid for pid in children(server.process) if has_connection(pid)]
            os.kill(pid, signal.SIGKILL)
            assert "ended after" in server.process.stderr.readline()
            assert holding.sock.recv(100) == b""
        wait_until(lambda: len(children(server.process)) == 2, server.process)
        send(server, count=5)
    figures = server.figures
    assert (figures["messages"]["stored"], figures["messages"]["unfinished"]) == (10, 1)
    assert (figures["crashes"], figures["restarts"]) == (1, 1)


def test_who_started_it_ignores_the_end_of_processes():
    with serve("--to", "null:", "--workers", 1, under=["env", "--ignore-signal=CHLD"]) as server:
        (pid,) = children(server.process)
        os.kill(pid, signal.SIGKILL)
        assert "ended after" in server.process.stderr.readline()
        wait_until(lambda: children(server.process) not in ([], [pid]), server.process)
        send(server)
    assert (server.figures["messages"]["stored"], server.figures["crashes"]) == (1, 1)


def has_connection(pid: int) -> bool:
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return any(line[3] == "01" and f"socket:[{line[9]}]" in inodes for line in lines)


def test_reload_replaces_the_workers(tmp_path):
    folder = tmp_path / "plugins"
    write_plugin(folder, "10-rejects", REJECTS.format("first"))
    with serve("--to", "null:", "--workers", 2, "--plugins", folder) as server, contextlib.ExitStack() as opened:
        before = children(server.process)
        open_one = opened.enter_context(contextlib.closing(connect(server)))
        open_one.ehlo()
        open_one.docmd("MAIL FROM:<a@example.org>")
        write_plugin(folder, "10-rejects", REJECTS.format("second"))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(set(children(server.process)) - set(before)) == 2, server.process)
        assert open_one.docmd("RCPT TO:<b@example.org>")[0] == 250  # the old worker stays for it
        assert open_one.data(TEXT) == (550, b"5.7.1 first")
        wait_until(lambda: not any(map(is_there, before)), server.process)
        with connect(server) as client, pytest.raises(smtplib.SMTPDataError, match="second"):
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        now = children(server.process)
        write_plugin(folder, "10-rejects", "this is no Python")
        server.process.send_signal(signal.SIGHUP)
        lines = iter(server.process.stderr.readline, "")
        assert any("the workers that there are stay: worker 0 cannot be replaced: exit code 3" in line for line in lines)
        assert children(server.process) == now
    figures = server.figures
    assert [worker["starts"] for worker in figures["workers"]] == [3, 2]
    assert (figures["crashes"], figures["messages"]["rejected"]) == (0, 2)


def test_a_first_generation_that_cannot_be(tmp_path):
    write_plugin(tmp_path / "plugins", "10-wrong", "this is no Python")
    arguments = ("--from", "smtp://127.0.0.1:0", "--to", "null:", "--hostname", "mx.example.org", "--workers", 2)
    result = run("run", *arguments, "--plugins", tmp_path / "plugins")
    assert result.returncode == 3
    assert "a worker ended before all were ready: exit code 3" in result.stderr


def test_a_port_that_another_run_has():
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as a run with workers has it
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"smtp://127.0.0.1:{taken.getsockname()[1]}"
        result = run("run", "--from", url, "--to", "null:", "--workers", 2)
    assert result.returncode == 4
    assert "another program has this port" in result.stderr


@pytest.mark.parametrize(
    ("source", "sink", "more", "text"),
    [
        ("mbox:/tmp/x", "null:", (), "--from mbox: is for one process; leave --workers out"),
        ("maildir:/tmp/x", "null:", (), "--from maildir: is for one process"),
        ("smtp://127.0.0.1:0", "mbox:/tmp/x", (), "--to mbox: is for one process"),
        ("smtp://127.0.0.1:0", "null:", ("--failed", "mbox:/tmp/x"), "--failed mbox: is for one process"),
        ("smtp://127.0.0.1:0", "null:", ("--workers", "some"), "'some' is no whole number above 0"),
    ],
)
def test_wrong_usage(source, sink, more, text):
    result = run("run", "--from", source, "--to", sink, "--workers", 2, *more)
    assert (result.returncode, text in result.stderr) == (2, True), result


@pytest.mark.parametrize("written", ['"auto"', "1"])
def test_in_the_file(tmp_path, written):
    (tmp_path / "mqcore.toml").write_text(f"[run]\nworkers = {written}\n")
    result = run("config", "--config", tmp_path / "mqcore.toml", "--from", "smtp://127.0.0.1:0", "--to", "null:")
    assert f"workers = {written}  # {tmp_path}/mqcore.toml:2" in result.stdout


def test_the_second_signal_ends_all(tmp_path):
    folder = write_plugin(tmp_path / "plugins", "10-holds", PLUGIN).parent
    with serve("--to", "null:", "--workers", 1, "--plugins", folder) as server:
        with contextlib.closing(held(server)):
            (pid,) = children(server.process)
            server.process.send_signal(signal.SIGINT)
            assert "once more to stop at once" in server.process.stderr.readline()
            server.process.send_signal(signal.SIGINT)
            assert finish(server.process).returncode == 130
        assert not is_there(pid)


@pytest.mark.slow
def test_workers_do_not_outlive_their_supervisor():
    with start("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", "--workers", 2, stderr=None, stdout=None) as process:
        wait_until(lambda: len(children(process)) == 2, process)
        pids = children(process)
        time.sleep(2)  # until they serve
        process.kill()
        give_up = time.monotonic() + 60
        while any(map(is_there, pids)):
            assert time.monotonic() < give_up
            time.sleep(0.02)


def test_a_message_that_ends_its_worker(tmp_path):
    folder = write_plugin(tmp_path / "plugins", "10-dies", PLUGIN).parent
    with serve("--to", "null:", "--workers", 1, "--plugins", folder) as server:
        for _ in range(3):
            send_to_its_death(server, b"Subject: x\r\n\r\nkill me\r\n")
            assert "ended after" in server.process.stderr.readline()
        send(server)
        with connect(server) as client, pytest.raises(smtplib.SMTPDataError, match="this message ended the server") as refused:
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\nkill me\r\n")
        assert refused.value.smtp_code == 554
        send(server, TEXT + b"another\r\n")
    counts = server.figures["messages"]
    assert (counts["stored"], counts["unfinished"], counts["rejected"], server.figures["crashes"]) == (2, 3, 1, 3)


def test_nothing_is_blamed_for_the_signal_of_an_operator(tmp_path):
    folder = write_plugin(tmp_path / "plugins", "10-dies", PLUGIN).parent
    with serve("--to", "null:", "--workers", 1, "--plugins", folder) as server:
        for _ in range(4):
            send_to_its_death(server, b"Subject: x\r\n\r\nbe killed\r\n")
            assert "by itself: SIGKILL" in server.process.stderr.readline()
    assert server.figures["crashes"] == 4


def test_a_maildir_that_all_write_to(tmp_path):
    box = tmp_path / "box"
    with serve("--to", f"maildir:{box}", "--workers", 2) as server:
        send(server, count=10)
        another = run("run", "--from", "smtp://127.0.0.1:0", "--to", f"maildir:{box}", "--workers", 2)
        assert (another.returncode, "another mqcore writes to" in another.stderr) == (4, True)
        left = children(server.process)[0]
        (box / "tmp" / ("Q" + "0" * 32 + ".mqcore.of-another.0")).touch()
        os.kill(left, signal.SIGKILL)
        assert "ended after" in server.process.stderr.readline()
        wait_until(lambda: len(children(server.process)) == 2, server.process)
        send(server, count=2)
    assert len(list((box / "new").iterdir())) == 12
    assert len(list((box / "tmp").iterdir())) == 1  # no dead worker's of this run


def test_steering_and_figures(tmp_path):
    folder = write_plugin(tmp_path / "plugins", "10-holds", PLUGIN).parent
    socket_path = str(tmp_path / "control.sock")
    shown = ("--metrics", f"unix:{tmp_path}/metrics.sock", "--control", socket_path)
    with serve("--to", "null:", "--workers", 2, "--plugins", folder, *shown) as server, contextlib.ExitStack() as opened:
        clients = [opened.enter_context(contextlib.closing(held(server))) for _ in range(3)]
        told = ask(socket_path, "status")
        assert (told["in_flight"], told["workers"], told["mails"]["read"], told["in_flight_limit"]) == (3, 2, 3, 1000)
        assert ask(socket_path, "held", limit=2)["held"] == 3
        assert ask(socket_path, "figures")["smtp"]["connections_open"] == 3
        assert ask(socket_path, "order", hook="mq_smtp_in_message")["order"] == ["10-holds"]
        text = metrics(tmp_path / "metrics.sock")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        held_now = {sample.labels["worker"]: sample.value for sample in families["mqcore_steps_held"].samples}
        assert (set(held_now), sum(held_now.values())) == ({"0", "1"}, 3)
        assert families["mqcore_workers"].samples[0].value == 2
        assert ask(socket_path, "cancel", plugin="10-holds") == {"cancelled": 3}
        assert [client.sock.recv(3) for client in clients] == [b"451"] * 3
        assert "no hook is named" in exchange(socket_path, {"command": "order", "hook": "x"})["error"]
        assert ask(socket_path, "drain") == {"in_flight": 0}
        assert server.process.wait(60) == 0


def ask(path, command, **arguments):
    answer = exchange(path, {"command": command, **arguments})
    assert answer["ok"], answer
    return answer["result"]


def metrics(path) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            head, _, body = file.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return body.decode()
