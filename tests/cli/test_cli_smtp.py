"""`mqcore run --from smtp://...`: real clients, what it says when it cannot listen, and its end."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import signal
import smtplib
import socket
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from cli_tools import TEXT, Server, finish, need, need_swaks, serve
from mail_tools import counted, read_maildir, read_mbox, report, run, small_disk, start, untraced, write_plugin
from smtp_tools import certificate

from mqcore.mail.smtp.source import SmtpSource

# Real clients


def test_smtplib(tmp_path):
    with serve("--to", f"maildir:{tmp_path}/in") as server, server.client() as client:
        for number in range(20):
            client.sendmail("a@example.org", ["b@example.org"], TEXT + b"%d\r\n" % number)
            # The 250 has come, so it is there.
            assert len(list((tmp_path / "in" / "new").iterdir())) == number + 1
    assert untraced(read_maildir(tmp_path / "in")) == [TEXT + b"%d\r\n" % number for number in range(20)]
    assert counted(server.figures) == {"continued": 20}
    assert (server.figures["stopped"], server.figures["exit_code"]) == (None, 0)


def test_smtplib_with_everything(tmp_path):
    """TLS, a login, an address that is not ASCII, a message with 8 bits."""
    write_plugin(
        tmp_path / "plugins",
        "10-accounts",
        """
        def mq_smtp_in_authenticate(context, message, login, password):
            message.connection.authenticated = (login, password) == ("alice", "s\u00e9cret")

        def mq_smtp_in_mailfrom(context, message, address):
            if not message.connection.authenticated:
                message.reject(530, "5.7.0 log in first")
        """,
    )
    text = "Subject: \u00e9\r\n\r\n\u00e9\r\n".encode()
    options = ("--plugins", tmp_path / "plugins", "--tls-certificate", certificate().file)
    with serve("--to", f"mbox:{tmp_path}/in", *options) as server, server.client() as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert client.mail("a@example.org")[0] == 530
        client._host = "localhost"
        client.starttls(context=certificate().client)
        client.ehlo()
        assert client.esmtp_features["auth"] == " PLAIN LOGIN"
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("alice", "wrong")
        client.docmd("AUTH", "PLAIN " + base64.b64encode("\0alice\0s\u00e9cret".encode()).decode())
        client.sendmail("\u00e9@example.org", ["b@example.org"], text, ["SMTPUTF8", "BODY=8BITMIME"])
    assert untraced(read_mbox(tmp_path / "in")) == [text]


def test_smtps_with_smtplib(tmp_path):
    options = ("--tls-certificate", certificate().file)
    with serve("--to", f"maildir:{tmp_path}/in", *options, source="smtps://127.0.0.1:0") as server:
        assert server.url.startswith("smtps://")
        with smtplib.SMTP_SSL("localhost", server.port, context=certificate().client, timeout=30) as client:
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
    assert untraced(read_maildir(tmp_path / "in")) == [TEXT]


def test_swaks(tmp_path):
    swaks = need_swaks()
    with serve("--to", f"maildir:{tmp_path}/in") as server:
        command = [swaks, "--server", f"127.0.0.1:{server.port}", "--to", "b@example.org", "--from", "a@example.org"]
        for more in ([], ["--pipeline"]):
            result = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60)
            assert result.returncode == 0, result
    mails = read_maildir(tmp_path / "in")
    assert len(mails) == 2
    assert all(b"This is a test mailing" in mail for mail in mails)


def test_swaks_with_tls_and_logins(tmp_path):
    swaks = need_swaks(tls=True)
    write_plugin(
        tmp_path / "plugins",
        "10-accounts",
        """
        def mq_smtp_in_authenticate(context, message, login, password):
            message.connection.authenticated = (login, password) == ("alice", "secret")
        """,
    )
    options = ("--plugins", tmp_path / "plugins", "--tls-certificate", certificate().file)
    with serve("--to", f"maildir:{tmp_path}/in", *options) as server:
        command = [swaks, "--server", f"127.0.0.1:{server.port}", "--to", "b@example.org", "--from", "a@example.org"]
        for more in (
            ["--tls"],
            ["--tls", "--auth", "PLAIN", "--auth-user", "alice", "--auth-password", "secret"],
            ["--tls", "--auth", "LOGIN", "--auth-user", "alice", "--auth-password", "secret"],
        ):
            result = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60)
            assert result.returncode == 0, result
        wrong = ["--tls", "--auth", "PLAIN", "--auth-user", "alice", "--auth-password", "wrong"]
        assert subprocess.run([*command, *wrong], capture_output=True, timeout=60).returncode == 28
    assert len(read_maildir(tmp_path / "in")) == 3


def test_curl(tmp_path):
    (tmp_path / "mail").write_bytes(TEXT)
    options = ("--failed", f"maildir:{tmp_path}/failed", "--tls-certificate", certificate().file)
    with serve("--to", f"maildir:{tmp_path}/in", *options) as server:
        url = f"smtp://127.0.0.1:{server.port}/client.example"
        command = [need("curl"), "-sS", "-k", "--upload-file", tmp_path / "mail", "--mail-from", "a@example.org"]
        recipients = ["--mail-rcpt", "b@example.org", "--mail-rcpt", "c@example.org"]
        for more in ([], ["--ssl-reqd"]):
            result = subprocess.run([*command, *recipients, *more, url], capture_output=True, timeout=60)
            assert result.returncode == 0, result
    assert untraced(read_maildir(tmp_path / "in")) == [TEXT] * 4


def test_postfixs_smtp_source(tmp_path):
    with serve("--to", f"maildir:{tmp_path}/in") as server:
        command = [need("smtp-source", "postfix"), "-s", "8", "-m", "200", "-l", "2000"]
        command += ["-f", "a@example.org", "-t", "b@example.org"]
        subprocess.run([*command, f"127.0.0.1:{server.port}"], check=True, timeout=120)
    assert len(read_maildir(tmp_path / "in")) == 200
    assert server.figures["messages"]["stored"] == 200


# What plugins do shows at the client


def test_rejected_and_failed_mails(tmp_path):
    write_plugin(
        tmp_path / "plugins",
        "10-odd",
        """
        import mqcore

        def mq_smtp_in_message(context, message):
            name = message.recipient.partition("@")[0]
            if name == "no":
                message.reject(550, "5.1.1 no such user")
            if name == "bug":
                raise ValueError("a bug")
            if name == "wait":
                context.start_timer(0.01, context.continue_, message)
                return True
            if name == "done":
                return mqcore.COMPLETE
        """,
    )
    options = ("--plugins", tmp_path / "plugins", "--failed", f"maildir:{tmp_path}/failed")
    with serve("--to", f"maildir:{tmp_path}/in", *options) as server, server.client() as client:
        client.sendmail("a@example.org", [f"{name}@example.org" for name in ("wait", "done", "no", "yes")], TEXT)
        with pytest.raises(smtplib.SMTPDataError, match="5.1.1 no such user"):
            client.sendmail("a@example.org", ["no@example.org"], TEXT)
        with pytest.raises(smtplib.SMTPDataError, match="4.3.0"):
            client.sendmail("a@example.org", ["yes@example.org", "bug@example.org"], TEXT)
    assert untraced(read_maildir(tmp_path / "in")) == [TEXT] * 3
    assert untraced(read_maildir(tmp_path / "failed")) == [TEXT]
    assert counted(server.figures) == {"continued": 2, "completed": 1, "rejected": 2, "failed": 1, "unfinished": 1}
    reasons = (tmp_path / "failed" / "mqcore.reasons.jsonl").read_text()
    assert '"recipient": "no@example.org"' in reasons and "5.1.1 no such user" in reasons


def test_the_closing_table_tells_the_hooks_of_a_plugin_apart(tmp_path):
    write_plugin(
        tmp_path / "plugins",
        "10-two",
        """
        def mq_smtp_in_mailfrom(context, message, address): pass
        def mq_smtp_in_message(context, message): pass
        """,
    )
    with start("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", "--plugins", tmp_path / "plugins") as process:
        with Server(process, 0).client() as client:
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        process.send_signal(signal.SIGTERM)
        lines = [line.split() for line in finish(process).stdout.splitlines()]
    assert ["10-two", "mq_smtp_in_mailfrom", "1"] in [line[:3] for line in lines]
    assert ["10-two", "mq_smtp_in_message", "1"] in [line[:3] for line in lines]


def test_what_is_stored_has_the_senders_address(tmp_path):
    with serve("--to", f"mbox:{tmp_path}/in") as server, server.client() as client:
        client.sendmail("a@example.org", ["b@example.org"], b"From the start\r\n\r\nFrom here\r\n")
    assert (tmp_path / "in").read_bytes().startswith(b"From a@example.org ")
    assert untraced(read_mbox(tmp_path / "in")) == [b">From the start\r\n\r\n>From here\r\n"]


# Where it cannot listen


def test_a_busy_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("run", "--from", f"smtp://127.0.0.1:{port}", "--to", "null:")
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr == (
        f"mqcore: cannot listen on smtp://127.0.0.1:{port}: Address already in use; another program has this port\n"
    )


def test_a_port_below_1024(monkeypatch):
    from mqcore.mail import SourceError
    from mqcore.mail.smtp.source import SmtpSource

    class Refused(socket.socket):
        def bind(self, address):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refused)
    with pytest.raises(SourceError) as raised:
        SmtpSource("//127.0.0.1:25")
    assert str(raised.value) == (
        "cannot listen on smtp://127.0.0.1:25: Permission denied; "
        "only root may listen on a port below 1024: choose a higher one"
    )


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("//192.0.2.1:2525", "Cannot assign requested address; this machine has no such address"),
        ("//no.such.host.invalid:2525", ""),
    ],
)
def test_an_address_that_is_not_ours(place, why):
    result = run("run", "--from", f"smtp:{place}", "--to", "null:")
    assert result.returncode == 4
    assert result.stderr.startswith(f"mqcore: cannot listen on smtp:{place}: {why}")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--from", "smtp://127.0.0.1"], "'//127.0.0.1' is not //HOST:PORT"),
        (["--from", "smtp:127.0.0.1:25"], "'127.0.0.1:25' is not //HOST:PORT"),
        (["--from", "smtp://127.0.0.1:x"], "'//127.0.0.1:x' is not //HOST:PORT"),
        (["--from", "smtp://127.0.0.1:70000"], "'//127.0.0.1:70000' is not //HOST:PORT"),
        (["--from", "smtp://::1:25"], "an IPv6 address stands in brackets: //[::1]:25"),
        (["--from", "smtp://me:secret@127.0.0.1:25"], "a user and a password have no place in it"),
        (["--from", "smtp://mx..example.org:25"], "'mx..example.org' is no name of a host"),
        (["--from", f"smtp://{'x' * 64}.example.org:25"], ".example.org' is no name of a host"),
        (["--from", "smtps://127.0.0.1:465"], "--from smtps: needs --tls-certificate"),
        (["--from", "smtp://127.0.0.1:25", "--tls-key", "x"], "--tls-key needs --tls-certificate"),
        (["--from", "mbox:x", "--tls-certificate", "x"], "-certificate is for --from smtp:, --from smtps: and --from lmtp:"),
        (["--from", "smtp://:0", "--to", "smtp://127.0.0.1:25"], "give --failed or --one-recipient"),
        (["--from", "mbox:x", "--one-recipient"], "--one-recipient is for --from smtp: and --from smtps:"),
        (["--from", "lmtp://:0", "--one-recipient"], "--one-recipient is for --from smtp: and --from smtps:"),
        (["--from", "lmtp://:25"], "--from lmtp: does not listen on port 25, where clients expect SMTP"),
        (["--from", "lmtp:unix:"], "'unix:' is not //HOST:PORT"),
        (["--from", "smtps:unix:x", "--tls-certificate", "x"], "'smtps:unix:x' is no source; it can be "),
        (["--from", "smtp:unix:x", "--tls-certificate", "x"], "--tls-certificate is for --from smtp://HOST:PORT; a socket"),
        (["--from", "lmtp:unix:x", "--to", "lmtp:unix:./x"], "/x are the same"),
    ],
)
def test_wrong_usage(arguments, why):
    result = run("run", *(() if "--to" in arguments else ("--to", "null:")), *arguments)
    assert result.returncode == 2
    assert why in result.stderr


def test_any_number_of_mails_may_be_on_the_way():
    with serve("--to", "null:", "--max-in-flight", 1 << 64) as server, server.client() as client:
        client.sendmail("a@example.org", ["b@example.org"], TEXT)


def test_a_certificate_that_is_not_there(tmp_path):
    missing = tmp_path / "missing.pem"
    result = run("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", "--tls-certificate", missing)
    assert (result.returncode, result.stderr) == (4, f"mqcore: cannot read {missing}: No such file or directory\n")


def test_every_address_of_a_host(tmp_path):
    with serve("--to", f"maildir:{tmp_path}/in", source="smtp://localhost:0") as server:
        addresses = {address for *_, address in socket.getaddrinfo("localhost", server.port, type=socket.SOCK_STREAM)}
        for address in addresses:
            with smtplib.SMTP(address[0], server.port, timeout=30) as client:
                client.sendmail("a@example.org", ["b@example.org"], TEXT)
    assert len(read_maildir(tmp_path / "in")) == len(addresses)


def test_an_address_of_a_host_that_this_machine_does_not_have(monkeypatch):
    """As ::1 of localhost where IPv6 is turned off."""
    find = socket.getaddrinfo

    def find_both(host, port, **options):
        assert host == "localhost"
        return find("192.0.2.1", port, **options) + find("127.0.0.1", port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", find_both)
    with contextlib.closing(SmtpSource("//localhost:0")) as source:
        (listener,) = source.listeners
        host, port = listener.getsockname()
        assert (host, source.url) == ("127.0.0.1", f"smtp://localhost:{port}")


# Its end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_clients_are_there(tmp_path, number):
    with serve("--to", f"maildir:{tmp_path}/in") as server:
        with contextlib.closing(server.client()) as idle, contextlib.closing(server.client()) as busy:
            busy.ehlo()
            busy.mail("a@example.org")
            busy.rcpt("b@example.org")
            server.process.send_signal(number)
            said = server.process.stderr.readline()
            assert said == "mqcore: stopping when the transactions that are open are over; once more to stop at once\n"
            assert idle.getreply() == (421, b"4.3.2 this server is shutting down")
            assert busy.data(TEXT)[0] == 250
            assert busy.getreply()[0] == 421
        result = finish(server.process)
        assert result.returncode == 0, result
    assert untraced(read_maildir(tmp_path / "in")) == [TEXT]


def test_clients_that_go_away_leave_no_traceback(tmp_path):
    write_plugin(
        tmp_path / "plugins",
        "10-wait",
        """
        def mq_smtp_in_mailfrom(context, message, address):
            context.start_timer(1, context.continue_, message)
            context.log.warning("has it")
            return True

        def mq_smtp_in_close(context, message):
            context.start_timer(0.1, context.continue_, message)
            return True
        """,
    )
    with serve("--to", "null:", "--plugins", tmp_path / "plugins") as server:
        for _ in range(10):
            with contextlib.closing(server.client()) as client:
                client.ehlo()
                client.send(b"MAIL FROM:<a@example.org>\r\n")
                assert "has it" in server.process.stderr.readline()
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        said = ""
        while said.count("gave back a message") < 10:
            said += server.process.stderr.readline()
            assert server.process.poll() is None, said
        said += server.stop().stderr
    assert said.count("gave back a message") == 10
    assert "Traceback" not in said


def test_a_plugin_that_exits(tmp_path):
    """Its step fails, and those who are in the middle of a transaction finish it."""
    write_plugin(
        tmp_path / "plugins",
        "10-exit",
        """
        import sys

        def mq_smtp_in_mailfrom(context, message, address):
            if address.startswith("exit"):
                sys.exit(0)
        """,
    )
    with serve("--to", f"mbox:{tmp_path}/in", "--plugins", tmp_path / "plugins", code=1) as server:
        with contextlib.closing(server.client()) as busy, contextlib.closing(server.client()) as client:
            busy.ehlo()
            busy.mail("a@example.org")
            busy.rcpt("b@example.org")
            client.ehlo()
            assert client.mail("exit@example.org")[0] == 451
            assert busy.data(TEXT)[0] == 250
            assert busy.getreply()[0] == 421
        result = finish(server.process)
        assert result.returncode == 1, result
        said = "plugin 10-exit, hook mq_smtp_in_mailfrom, ended the run: sys.exit(0)"
        assert f"mqcore: {said}\n" in result.stderr
        assert report(result)["error"] == said
    assert len(read_mbox(tmp_path / "in")) == 1
    assert not (tmp_path / "in.lock").exists()


def send_until_refused(server: Server, name: str) -> list[bytes]:
    """The mails that got their 250."""
    acknowledged: list[bytes] = []
    try:
        with contextlib.closing(server.client()) as client:
            while True:
                mail = b"%b %d\r\n" % (name.encode(), len(acknowledged)) + b"x" * 9000 + b"\r\n"
                client.sendmail("a@example.org", ["b@example.org"], mail)
                acknowledged.append(mail)
    except smtplib.SMTPResponseException as error:
        if error.smtp_code != 452:
            raise
    except OSError:  # it has ended
        pass
    return acknowledged


@pytest.mark.parametrize("sink", ["maildir", "mbox"])
def test_a_disk_that_is_full(tmp_path, sink):
    """Clients keep what is not stored; what got its 250 is there, and no more."""
    with small_disk(tmp_path / "disk") as disk:
        place = f"{sink}:{disk}/in"
        with serve("--to", place) as server:
            with ThreadPoolExecutor() as pool:
                acknowledged = [mail for mails in pool.map(send_until_refused, [server] * 12, "abcdefghijkl") for mail in mails]
            assert f"cannot write to {place}: No space left on device" in server.stop().stderr
        assert server.figures["error"] is None
        assert server.figures["messages"]["stored"] == len(acknowledged) > 50
        read = read_maildir if sink == "maildir" else read_mbox
        assert sorted(untraced(read(disk / "in"))) == sorted(acknowledged)
        subprocess.run(["mount", "-o", "remount,size=2m", disk], check=True)
        with serve("--to", place) as server, server.client() as client:
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        assert sorted(untraced(read(disk / "in"))) == sorted([*acknowledged, TEXT])


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="the size of a pipe cannot be changed here")
def test_refusals_that_nobody_reads_stop_no_server():
    with serve("--to", "null:") as server:
        fcntl.fcntl(server.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        for _ in range(12):
            with contextlib.closing(server.client()) as client:
                for _ in range(20):
                    assert client.docmd("NONSENSE")[0] == 500
        result = server.stop()
    assert server.figures["refusals"] == [{"stage": "command", "code": 500, "count": 240}]
    assert result.stderr.count("stage=command") < 100
