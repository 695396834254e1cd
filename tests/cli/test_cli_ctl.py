"""`mqcore ctl`, and the signals that do the same, on the command as an operator runs it."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading

import pytest
import trustme
from cli_tools import TEXT, serve, wait_until
from mail_tools import run, start, write_mbox, write_plugin

from mqcore.cli import ctl
from mqcore.cli.run import _check_recipients
from mqcore.mail.places import parse_sink, parse_source

HOLDS = """
    def mq_smtp_in_message(context, message):
        if b"hold" in message.mime:
            context.data.setdefault("held", []).append(message)
            return True
    """
TAGS = """
    def mq_smtp_in_message(context, message):
        message.reject(550, "5.7.1 version {}")
    """


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    """A server for the tests that leave it as it was, and what asks it."""
    folder = tmp_path_factory.mktemp("steered")
    write_plugin(folder / "plugins", "10-hold", HOLDS)
    with serve("--to", "null:", "--plugins", folder / "plugins", "--control", folder / "control.sock") as server:
        server.plugins = folder / "plugins"
        server.ctl = lambda *arguments: run("ctl", "--socket", folder / "control.sock", *arguments)
        yield server


def said(result, code=0):
    assert result.returncode == code, result
    return result.stdout if code == 0 else result.stderr


def send(server, text=TEXT):
    with server.client() as client:
        client.ehlo()
        client.mail("a@example.org")
        client.rcpt("b@example.org")
        code, reply = client.data(text)
        return code, reply.decode()


def test_status(steered):
    text = said(steered.ctl("status"))
    assert "state: running\n" in text
    assert f"source: {steered.url}\n" in text
    assert "plugins: 10-hold\npaused: none\n" in text
    assert re.search(r"^started: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d\nuptime: 0:0\d:\d\d\n", text, re.MULTILINE), text
    assert re.search(r"^reloads: \d+(, the last one at .{25})?; \d+ failed$", text, re.MULTILINE), text
    assert json.loads(said(steered.ctl("status", "--json")))["state"] == "running"
    assert json.loads(said(steered.ctl("--json", "status")))["state"] == "running"
    assert said(steered.ctl("order", "mq_smtp_in_message")) == "10-hold\n"
    assert said(steered.ctl("held")) == "0 held\n"
    assert said(steered.ctl("stats")).startswith("steps: ")


def test_held_and_cancel(steered):
    replies = []
    sending = threading.Thread(target=lambda: replies.append(send(steered, b"Subject: hold\r\n\r\n")))
    sending.start()
    wait_until(lambda: json.loads(said(steered.ctl("held", "--json")))["held"] == 1, steered.process)
    lines = said(steered.ctl("held", "--plugin", "10-hold", "--older", "1ms", "--limit", "5")).splitlines()
    assert lines[0] == "1 held, 1 shown, the oldest first"
    assert lines[1].split() == ["id", "plugin", "hook", "age", "peer", "envelope", "recipient"]
    id, name, hook, _, peer, envelope, recipient = lines[2].split()
    assert [name, hook, peer] == ["10-hold", "mq_smtp_in_message", "127.0.0.1"]
    assert [envelope, recipient] == ["a@example.org", "b@example.org"]
    assert said(steered.ctl("cancel", id)) == "cancelled: 1\n"
    sending.join(30)
    assert replies == [(451, "4.3.0 this server has a problem; try again later")]
    assert said(steered.ctl("cancel", id), 1) == f"mqcore: no message with the id {id} is held\n"
    assert said(steered.ctl("cancel", "--plugin", "10-hold", "--older", "5m")) == "cancelled: 0\n"


def test_pause(steered):
    assert said(steered.ctl("pause", "10-hold")) == "paused: 10-hold\n"
    assert send(steered, b"Subject: hold\r\n\r\n")[0] == 250
    assert said(steered.ctl("order", "mq_smtp_in_message")) == "10-hold (paused)\n"
    assert said(steered.ctl("resume", "10-hold")) == "paused: none\n"
    assert said(steered.ctl("pause", "10-old"), 1) == "mqcore: no plugin is named '10-old'; the nearest name is 10-hold\n"


def test_reload(steered):
    plugin = write_plugin(steered.plugins, "20-tag", TAGS.format(1))
    assert send(steered)[0] == 250
    assert said(steered.ctl("reload")).startswith("reloaded 2 plugins in ")
    assert send(steered) == (550, "5.7.1 version 1")
    plugin.write_text("1 +")
    text = said(steered.ctl("reload"), 3)
    assert text.startswith(f"mqcore: {plugin}:1: ")
    assert f"; 1 failed\nwhy the last one failed: {plugin}:1: " in said(steered.ctl("status"))
    assert send(steered) == (550, "5.7.1 version 1")
    plugin.unlink()
    assert said(steered.ctl("reload")).startswith("reloaded 1 plugin in ")
    assert send(steered)[0] == 250


def test_trace(steered):
    """As an operator does it: he waits, a mail comes, and he is shown what happened to it."""
    plugin = write_plugin(
        steered.plugins, "20-tag", "def mq_smtp_in_message(context, message): message.headers.add('X-Tag', '1')\n"
    )
    said(steered.ctl("reload"))
    for option in ([], ["--json"]):
        socket = steered.plugins.parent / "control.sock"
        with start("ctl", "--socket", socket, "trace", "--peer", "127.0.0.1", *option) as asking:
            assert asking.stderr.readline() == "mqcore: waiting for the transaction; Ctrl-C gives up\n"
            assert send(steered)[0] == 250  # it may come before the server knows that somebody waits
            while asking.poll() is None:
                assert send(steered)[0] == 250
            out = asking.stdout.read()
        if option:
            assert json.loads(out)["peer"] == "127.0.0.1"
        else:
            lines = out.splitlines()
            at = lines.index("mq_smtp_in_message  for b@example.org")
            assert re.fullmatch(r"  10-hold  CONTINUE  [\d.]+ (us|ms)", lines[at + 1])
            assert re.fullmatch(r"  20-tag   CONTINUE  [\d.]+ (us|ms) +\+X-Tag: 1", lines[at + 2])
            assert re.fullmatch(r"reply 250 2\.6\.0 stored as [0-9a-f]{32}", lines[-1])
    plugin.unlink()
    said(steered.ctl("reload"))


def test_trace_that_is_given_up(steered):
    with start("ctl", "--socket", steered.plugins.parent / "control.sock", "trace", "0123") as asking:
        assert asking.stderr.readline() == "mqcore: waiting for the transaction; Ctrl-C gives up\n"
        asking.send_signal(signal.SIGINT)
        assert asking.wait(30) == 130 and asking.stderr.read() == ""


def test_a_signal_that_comes_before_it_waits_is_seen(tmp_path, monkeypatch, capsys):
    # As Python looks for signals before it calls the system, one that comes between is seen when that call is over.
    monkeypatch.setattr(ctl, "AT_ONCE", 0.01)
    monkeypatch.setattr(ctl, "AGAIN", 0.02)
    waits = []

    class Socket(socket.socket):
        def recv(self, size):
            waits.append(self.gettimeout())
            if len(waits) == 4:
                signal.raise_signal(signal.SIGINT)
            return super().recv(size)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "control.sock"))
        server.listen()
        monkeypatch.setattr(ctl.socket, "socket", Socket)
        with pytest.raises(KeyboardInterrupt):
            ctl.exchange(str(tmp_path / "control.sock"), {}, waiting="waiting")
    assert waits == [0.01, 0.02, 0.02, 0.02]
    assert capsys.readouterr().err == "mqcore: waiting\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["trace"], "mqcore: trace needs either an id or a peer"),
        (["trace", "--peer", "example.org"], "mqcore: peer of trace is wrong: an IP address, as 192.0.2.7 or 2001:db8::7"),
        (["held", "--older", "10 days"], "argument --older: '10 days' is no duration; write 500ms, 10s, 5m or 2h"),
        (["held", "--limit", "0"], "argument --limit: '0' is no whole number above 0"),
        (["held", "--limit", "100000"], "mqcore: limit of held is wrong: a whole number from 1 to 10000"),
        (["cancel"], "mqcore: cancel needs either the id of a message, or a plugin and perhaps older"),
        (["order"], "the following arguments are required: HOOK"),
        (["reloaad"], "invalid choice: 'reloaad'"),
        (["c.sock", "status"], "did you mean --socket c.sock?"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_usage(steered, arguments, text):
    assert text in said(steered.ctl(*arguments), 2)


def test_nobody_is_there(tmp_path):
    path = tmp_path / "control.sock"
    text = said(run("ctl", "--socket", path, "status"), 4)
    assert text.startswith(f"mqcore: cannot ask the server at {path}: No such file or directory; is a server running")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert "Connection refused; the server that was there is gone" in said(run("ctl", "status", "--socket", path), 4)
    long = tmp_path / ("x" * 200)
    for same in (("--control", path, "status"), ("status", "--control", path)):
        assert f"cannot ask the server at {path}: Connection refused" in said(run("ctl", *same), 4)
    assert "AF_UNIX path too long" in said(run("ctl", "--socket", long, "status"), 4)
    assert "cannot ask the server at /run/" in said(run("ctl", "status", env=None), 4)


def test_where_the_control_socket_cannot_be(tmp_path):
    result = run("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", "--control", tmp_path / "no" / "control.sock")
    no = tmp_path / "no"
    text = f"{no}: No such file or directory; make the folder {no} first\n"
    assert f"mqcore: cannot listen on the control socket {no}/control.sock: {text}" in said(result, 4)


def test_in_the_folder_of_systemd(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/elsewhere")
    with serve("--to", "null:") as server:
        assert "state: running" in said(run("ctl", "status"))
        assert said(run("ctl", "stop")) == "in flight: 0\n"
        server.process.wait(30)
        server.stop()
    assert not (tmp_path / "control.sock").exists()


def test_drain(tmp_path):
    """A source that is a mailbox stays where it is, and says that it is not all there."""
    write_plugin(tmp_path / "plugins", "10-hold", HOLDS.replace('b"hold"', 'b"mail 7\\n"'))
    mbox = write_mbox(tmp_path / "mbox", 20)
    arguments = ("--plugins", tmp_path / "plugins", "--control", tmp_path / "control.sock", "--max-in-flight", "1")
    with start("run", "--from", f"mbox:{mbox}", "--to", f"maildir:{tmp_path}/out", "--json", *arguments) as process:
        ctl = ("ctl", "--socket", tmp_path / "control.sock")
        wait_until((tmp_path / "control.sock").exists, process)
        wait_until(lambda: json.loads(run(*ctl, "held", "--json").stdout or '{"held": 0}')["held"] == 1, process)
        assert said(run(*ctl, "drain")) == "in flight: 1\n"
        assert "state: draining\n" in said(run(*ctl, "status"))
        assert process.poll() is None
        assert said(run(*ctl, "drain", "--timeout", "1ms")) == "in flight: 1\n"
        out, err = process.communicate(timeout=30)
    figures = json.loads(out)
    assert (process.returncode, figures["stopped"]) == (143, "SIGTERM"), err
    assert (figures["messages"]["stored"], figures["messages"]["unfinished"]) == (7, 1)


def lines_until(process, text):
    """What it says on standard error, up to a line that has this."""
    lines = []
    while not lines or text not in lines[-1]:
        line = process.stderr.readline()
        assert line, lines
        lines.append(line.rstrip("\n"))
    return lines


def test_signals(tmp_path):
    """SIGHUP reloads plugins, configuration and certificate, SIGUSR1 writes the status; neither ends anything."""
    authority, file, config = trustme.CA(), tmp_path / "server.pem", tmp_path / "mqcore.toml"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
    write_plugin(tmp_path / "plugins", "20-tag", TAGS.format(1))
    config.write_text("[run]\nmax-recipients = 5\n")
    with serve("--to", "null:", "--plugins", tmp_path / "plugins", "--config", config, "--tls-certificate", file) as server:
        assert send(server) == (550, "5.7.1 version 1")
        write_plugin(tmp_path / "plugins", "20-tag", TAGS.format(2))
        config.write_text('[run]\nmax-recipients = 1\nhostname = "ignored.example"\nlenient = true\n')
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
        server.process.send_signal(signal.SIGHUP)
        line = lines_until(server.process, "reloaded")[-1]
        assert " WARNING mqcore.server: reloaded 1 plugin in " in line
        assert line.endswith("; changed: max-recipients, the certificate; as before until the next start: lenient")
        assert send(server) == (550, "5.7.1 version 2")
        config.write_text("[run]\nmax-recipient = 1\n")
        server.process.send_signal(signal.SIGHUP)
        line = lines_until(server.process, "not reloaded")[-1]
        assert f"{config}:2: [run] has max-recipient, which is no option that it may have; did you mean max-recipients?" in line
        config.write_text("[run]\nmax-recipients = 1\n")
        write_plugin(tmp_path / "plugins", "20-tag", "def mq_smtp_in_mesage(context, message): pass")
        server.process.send_signal(signal.SIGHUP)
        assert "mq_smtp_in_message" in lines_until(server.process, "not reloaded")[-1]
        assert send(server) == (550, "5.7.1 version 2")
        server.process.send_signal(signal.SIGUSR1)
        lines = lines_until(server.process, "reloads: ")
        assert "  state: running" in lines
        assert "  plugins: 20-tag" in lines
        assert lines[-1].startswith("  reloads: succeeded=1 failed=2 ")


def test_the_log_level_and_what_may_be_in_flight(tmp_path):
    config = tmp_path / "mqcore.toml"
    config.write_text("[run]\nmax-in-flight = 7\n")
    with serve("--to", "null:", "--config", config, "--control", tmp_path / "control.sock") as server:
        ctl = ("ctl", "--socket", tmp_path / "control.sock")
        assert "in flight limit: 7\n" in said(run(*ctl, "status"))
        config.write_text('[run]\nmax-in-flight = 8\nlog-level = "info"\nlog-format = "json"\njson = true\nfailed = "null:"\n')
        text = said(run(*ctl, "reload"))
        assert "; changed: max-in-flight, log-format, log-level; " in text
        assert text.endswith("; as before until the next start: failed\n")  # --json was given
        assert "in flight limit: 8\n" in said(run(*ctl, "status"))
        lines_until(server.process, "reloaded")
        assert send(server)[0] == 250
        line = json.loads(server.process.stderr.readline())
        assert (line["event"], line["outcome"]) == ("mail", "accepted")
        config.write_text('[run]\nmax-in-flight = 8\nlog-level = "inf"\n')
        text = said(run(*ctl, "reload"), 3)
        assert f"{config}:3: log-level in [run] is one of debug, info, warning, error, not 'inf'" in text
        config.write_text("")
        assert said(run(*ctl, "reload")).endswith("; changed: max-in-flight, log-format, log-level\n")
        assert "in flight limit: 1000\n" in said(run(*ctl, "status"))
        assert send(server)[0] == 250
        assert json.loads(lines_until(server.process, "not reloaded")[-1])["level"] == "ERROR"
        assert " INFO mqcore.server: reloaded" in server.process.stderr.readline()


# A hook that keeps the loop until there is a file.
KEEPS = """
    import os, time
    def mq_smtp_in_message(context, message):
        while not os.path.exists({go_on!r}):
            time.sleep(0.001)
"""


def test_the_format_of_the_watchdogs_lines_is_the_logs(tmp_path):
    """Which a reload may change; they come from a thread that writes them without the log."""
    config, go_on = tmp_path / "mqcore.toml", tmp_path / "go-on"
    config.write_text("[run]\n")
    write_plugin(tmp_path / "plugins", "20-slow", KEEPS.format(go_on=str(go_on)))
    arguments = ("--plugins", tmp_path / "plugins", "--config", config, "--watchdog", "1s")
    with serve("--to", "null:", *arguments, "--control", tmp_path / "control.sock") as server:
        config.write_text('[run]\nlog-format = "json"\n')
        said(run("ctl", "--socket", tmp_path / "control.sock", "reload"))
        sending = threading.Thread(target=send, args=(server,))
        sending.start()
        line = lines_until(server.process, "20-slow has kept the loop")[-1]
        go_on.touch()
        sending.join(30)
        assert json.loads(line)["event"] == "blocked"


def test_what_the_sink_needs_a_reload_does_not_take_away(tmp_path):
    """As the start would refuse it: nobody would say to whom mails go."""
    source, sink = parse_source("mbox:x"), parse_sink("smtp://127.0.0.1:25")
    for hooks in ({"mq_smtp_in_message"}, {"mq_smtp_out_data"}):
        _check_recipients(source, sink, hooks)
    with pytest.raises(ValueError, match="a plugin must set message.recipient, in mq_smtp_in_message or mq_smtp_out_data"):
        _check_recipients(source, sink, {"mq_smtp_in_close"})
    _check_recipients(parse_source("smtp://127.0.0.1:0"), sink, set())
    _check_recipients(source, parse_sink("null:"), set())


def test_a_signal_before_there_is_a_server(tmp_path):
    """Whoever starts it may be quick."""
    write_plugin(
        tmp_path / "plugins", "10-hup", "import os, signal\ndef mq_initialize(): os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    with serve("--to", "null:", "--plugins", tmp_path / "plugins") as server:
        assert "  state: running" in lines_until(server.process, "reloads: ")


def test_paths_are_where_they_were(tmp_path, monkeypatch):
    """Whatever a plugin makes the current directory."""
    monkeypatch.chdir(tmp_path)
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path("server.pem")
    write_plugin(tmp_path / "plugins", "10-cd", "import os\ndef mq_initialize(): os.chdir('/')\n")
    (tmp_path / "mqcore.toml").write_text('[run]\ntls-certificate = "server.pem"\n')
    arguments = ("--plugins", "plugins", "--config", "mqcore.toml", "--control", "control.sock")
    with serve("--to", "null:", *arguments):
        assert said(run("ctl", "--socket", tmp_path / "control.sock", "reload")).startswith("reloaded 1 plugin in ")
