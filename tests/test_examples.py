"""The example plugins do what their docstrings say, with servers where they ask one."""

from __future__ import annotations

import base64
import contextlib
import json
import runpy
import shutil
import signal
import socketserver
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dkim
import pytest
from cli_tools import serve
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from mail_tools import EXAMPLES, counted, move, read_maildir, run, start

SAMPLE = f"mbox:{EXAMPLES}/sample.mbox"
ORDER = ["10-tag", "20-trusted", "30-pace", "40-policy", "50-spamd", "60-unsrs", "70-greylist", "90-dkim"]


def only(tmp_path: Path, *names: str) -> Path:
    """A directory with just these of the plugins."""
    folder = tmp_path / "plugins"
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(EXAMPLES / "plugins" / f"{name}.py", folder)
    return folder


def configure(tmp_path: Path, plugin: str, **settings: object) -> tuple[str, Path]:
    """`--config` and a file with these settings. JSON's values are TOML's, as far as they are used here."""
    path = tmp_path / "mqcore.toml"
    path.write_text(
        f"[plugins.{plugin}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    )
    return "--config", path


def subjects(maildir: Path) -> list[str]:
    lines = [
        next(line for line in mail.split(b"\n") if line.startswith(b"Subject: ")) for mail in read_maildir(maildir)
    ]
    return [line[9:].decode() for line in lines]


def by_plugin(figures: dict) -> dict[str, dict]:
    return {entry["plugin"]: entry for entry in figures["plugins"]}


def test_all_of_them_on_the_sample(tmp_path):
    figures = move(SAMPLE, f"maildir:{tmp_path}/out", "--plugins", EXAMPLES / "plugins")
    assert counted(figures) == {"continued": 17, "completed": 3}
    plugins = by_plugin(figures)
    assert [name for name in plugins if name in ORDER[:6]] == ORDER[:6]  # the others have no hook of this stage
    assert plugins["30-pace"]["holds"] > 0
    assert plugins["50-spamd"]["calls"] == 17 + 1  # one mail starts again
    assert plugins["60-unsrs"]["retries"] == 1
    assert plugins["20-trusted"]["completes"] == 3


def test_check_and_order(tmp_path):
    result = run("check", EXAMPLES / "plugins")
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == ORDER


def test_tag(tmp_path):
    move(SAMPLE, f"maildir:{tmp_path}/out", "--plugins", only(tmp_path, "10-tag"))
    originals = read_maildir_of_sample(tmp_path)
    for mail, original in zip(read_maildir(tmp_path / "out"), originals, strict=True):
        tags = mail[: len(mail) - len(original)]
        assert mail.endswith(original)
        assert (b"X-Tag: list\n" in tags) == (b"List-Id:" in original)
        assert (b"X-Tag: automatic\n" in tags) == (b"Auto-Submitted:" in original)
        assert (b"X-Tag: invoice\n" in tags) == (b"nvoice" in original.partition(b"\n\n")[0])


def read_maildir_of_sample(tmp_path: Path) -> list[bytes]:
    move(SAMPLE, f"maildir:{tmp_path}/as-it-was")
    return read_maildir(tmp_path / "as-it-was")


def test_tag_with_rules_of_ones_own(tmp_path):
    config = tmp_path / "mqcore.toml"
    config.write_text('[plugins.10-tag]\nrules = [{ header = "Subject", pattern = "lunch", tag = "food" }]\n')
    move(SAMPLE, f"maildir:{tmp_path}/out", "--plugins", only(tmp_path, "10-tag"), "--config", config)
    assert sum(mail.startswith(b"X-Tag: food\n") for mail in read_maildir(tmp_path / "out")) == 3


def test_tag_keeps_to_the_line_ends_of_the_mail(tmp_path):
    (tmp_path / "mbox").write_bytes(b"From a@example.com\r\nList-Id: <x>\r\n\r\nhello\r\n")
    move(f"mbox:{tmp_path}/mbox", f"maildir:{tmp_path}/out", "--plugins", only(tmp_path, "10-tag"))
    assert read_maildir(tmp_path / "out") == [b"X-Tag: list\r\nList-Id: <x>\r\n\r\nhello\r\n"]


def test_trusted(tmp_path):
    config = configure(tmp_path, "20-trusted", domains=["example.com"])
    figures = move(SAMPLE, f"maildir:{tmp_path}/out", "--plugins", only(tmp_path, "20-trusted"), *config)
    assert counted(figures) == {"continued": 3, "completed": 17}


def test_pace(tmp_path):
    config = configure(tmp_path, "30-pace", per_second=1000)
    figures = move(SAMPLE, f"maildir:{tmp_path}/out", "--plugins", only(tmp_path, "30-pace"), *config)
    assert counted(figures) == {"continued": 20}
    assert by_plugin(figures)["30-pace"]["holds"] == by_plugin(figures)["30-pace"]["continues"] > 10


def test_retry_lets_the_plugins_before_see_the_real_sender(tmp_path):
    figures = move(SAMPLE, f"maildir:{tmp_path}/out", "--plugins", only(tmp_path, "20-trusted", "60-unsrs"))
    assert counted(figures) == {"continued": 17, "completed": 3}
    assert [file.name for file in (tmp_path / "out" / "new").glob("*E=frank@example.org")] != []


# A Postfix policy server


class Policy(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        asked = {}
        while (line := self.rfile.readline().decode().rstrip("\n")) != "":
            name, _, value = line.partition("=")
            asked[name] = value
        self.server.asked.append(asked)
        self.server.answer(self, asked)


def say(action: str) -> object:
    return lambda handler, asked: handler.wfile.write(f"action={action}\n\n".encode())


def by_sender(handler: Policy, asked: dict[str, str]) -> None:
    # In two parts, for the plugin to put together.
    handler.wfile.write(b"action=")
    handler.wfile.flush()
    answers = {
        "x7731@example.com": "REJECT not today",
        "lena@example.com": "DEFER_IF_PERMIT",
        "billing@example.com": "DISCARD",
        "ken@example.com": "REJECT",
    }
    handler.wfile.write(answers.get(asked["sender"], "DUNNO").encode() + b"\n\n")


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 100
    daemon_threads = True


@contextlib.contextmanager
def serving(handler: type[socketserver.BaseRequestHandler], **attributes: object) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), handler) as server:
        vars(server).update(attributes)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def ask(tmp_path: Path, plugin: str, server: Server, *, code: int, **settings: object) -> dict:
    config = configure(tmp_path, plugin, address="{}:{}".format(*server.server_address), **settings)
    failed = ("--failed", f"maildir:{tmp_path}/failed")
    return move(SAMPLE, f"maildir:{tmp_path}/out", "--plugins", only(tmp_path, plugin), *config, *failed, code=code)


def test_policy(tmp_path):
    with serving(Policy, asked=[], answer=by_sender) as server:
        figures = ask(tmp_path, "40-policy", server, code=1)
    discarded = sum(asked["sender"] == "billing@example.com" for asked in server.asked)
    assert counted(figures) == {"continued": 17 - discarded, "rejected": 3, "discarded": discarded} and discarded
    assert len(server.asked) == 20
    assert server.asked[0]["request"] == "smtpd_access_policy"
    reasons = [json.loads(line) for line in (tmp_path / "failed" / "mqcore.reasons.jsonl").read_text().splitlines()]
    assert sorted((reason["rejected"]["code"], reason["rejected"]["text"]) for reason in reasons) == [
        (450, "refused by policy"),
        (550, "not today"),
        (550, "refused by policy"),
    ]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda handler, asked: None, "the connection was closed"),
        (lambda handler, asked: threading.Event().wait(2), "no answer in time"),
    ],
)
def test_policy_without_an_answer_lets_the_mail_pass(tmp_path, answer, why):
    with serving(Policy, asked=[], answer=answer) as server:
        config = configure(tmp_path, "40-policy", address="{}:{}".format(*server.server_address), timeout=0.3)
        result = run("run", "--from", SAMPLE, "--to", "null:", "--plugins", only(tmp_path, "40-policy"), *config)
    assert result.returncode == 0, result
    assert result.stderr.count(f"policy server: {why}; the mail goes on without its answer") == 20


def test_policy_with_no_server_lets_the_mail_pass(tmp_path):
    with socketserver.TCPServer(("127.0.0.1", 0), Policy) as server:
        address = "{}:{}".format(*server.server_address)
    config = configure(tmp_path, "40-policy", address=address)
    result = run("run", "--from", SAMPLE, "--to", "null:", "--plugins", only(tmp_path, "40-policy"), *config)
    assert result.returncode == 0, result
    assert result.stderr.count("policy server: ECONNREFUSED") == 20


def test_policy_stopped_while_questions_are_open(tmp_path):
    asked: list = []
    with serving(Policy, asked=asked, answer=lambda handler, asked: handler.rfile.read()) as server:
        config = configure(tmp_path, "40-policy", address="{}:{}".format(*server.server_address), timeout=60)
        plugins = ("--plugins", only(tmp_path, "40-policy"))
        with start("run", "--from", SAMPLE, "--to", "null:", "--json", *plugins, *config) as process:
            while len(asked) < 20:
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "mqcore: stopping when what the plugins are done with is stored; once more to stop at once\n"
    assert json.loads(out)["messages"]["unfinished"] == 20


# spamd


class Spamd(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert self.rfile.readline() == b"CHECK SPAMC/1.5\r\n"
        length = int(self.rfile.readline().removeprefix(b"Content-length: "))
        assert self.rfile.readline() == b"\r\n"
        spam = b"LOCKED" in self.rfile.read(length)
        self.wfile.write(self.server.status + b"\r\nSpam: %s ; 9.1 / 5.0\r\n\r\n" % (b"True" if spam else b"False"))


def test_spamd(tmp_path):
    with serving(Spamd, status=b"SPAMD/1.1 0 EX_OK") as server:
        figures = ask(tmp_path, "50-spamd", server, code=1, connections=3)
    assert counted(figures) == {"continued": 19, "rejected": 1}
    assert subjects(tmp_path / "failed") == ["Your account has been LOCKED!!!"]
    assert all(b"X-Spam-Score: 9.1\n" in mail for mail in read_maildir(tmp_path / "out"))


@pytest.mark.parametrize(("discard", "what"), [(9.1, "discarded"), (9.2, "rejected")])
def test_spamd_and_spam_without_doubt(tmp_path, discard, what):
    with serving(Spamd, status=b"SPAMD/1.1 0 EX_OK") as server:
        figures = ask(tmp_path, "50-spamd", server, code=int(what == "rejected"), discard=discard)
    assert counted(figures) == {"continued": 19, what: 1}


def test_spamd_that_fails_fails_the_mail(tmp_path):
    with serving(Spamd, status=b"SPAMD/1.1 76 Bad header line") as server:
        figures = ask(tmp_path, "50-spamd", server, code=1)
    assert counted(figures) == {"failed": 20}
    reason = json.loads((tmp_path / "failed" / "mqcore.reasons.jsonl").read_text().splitlines()[0])
    assert reason["error"] == "RuntimeError: spamd says 'SPAMD/1.1 76 Bad header line'"


# Greylisting

GREYLISTED = (450, b"4.7.1 greylisted, come again in a few minutes")


def test_greylist(tmp_path):
    """Who comes again later passes, and others do not; and what is known outlives the run."""
    arguments = ("--to", f"maildir:{tmp_path}/out", "--plugins", only(tmp_path, "70-greylist"))
    config = configure(tmp_path, "70-greylist", database=f"{tmp_path}/greylist.sqlite3", delay=0.3)
    with serve(*arguments, *config) as server, server.client() as client:
        client.ehlo()
        client.mail("a@example.org")
        assert client.rcpt("b@example.org") == GREYLISTED
        give_up = time.monotonic() + 60
        while (reply := client.rcpt("B@example.org")) == GREYLISTED and time.monotonic() < give_up:
            time.sleep(0.1)
        assert reply[0] == 250
        assert client.rcpt("c@example.org") == GREYLISTED
    configure(tmp_path, "70-greylist", database=f"{tmp_path}/greylist.sqlite3", delay=0.1)
    with serve(*arguments, *config) as server, server.client() as client:
        client.ehlo()
        client.mail("a@example.org")
        assert client.rcpt("b@example.org")[0] == 250
        assert client.rcpt("d@example.org") == GREYLISTED


def test_greylist_never_blocks_the_loop(tmp_path):
    """While the database is locked, other clients and other plugins go on; and then the one that waits does."""
    database = tmp_path / "greylist.sqlite3"
    config = configure(tmp_path, "70-greylist", database=str(database))
    arguments = ("--to", "null:", "--plugins", only(tmp_path, "70-greylist"), *config)
    with serve(*arguments) as server, server.client() as waiting, server.client() as other:
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            waiting.ehlo()
            waiting.mail("a@example.org")
            waiting.putcmd("RCPT TO:<b@example.org>")
            for _ in range(100):
                assert other.noop()[0] == 250
            lock.execute("ROLLBACK")
        assert waiting.getreply() == GREYLISTED


def test_greylist_with_a_database_that_fails_lets_the_client_come_again(tmp_path):
    database = tmp_path / "greylist.sqlite3"
    config = configure(tmp_path, "70-greylist", database=str(database))
    with serve("--to", "null:", "--plugins", only(tmp_path, "70-greylist"), *config) as server, server.client() as client:
        with contextlib.closing(sqlite3.connect(database)) as other:
            other.execute("DROP TABLE seen")
        client.ehlo()
        client.mail("a@example.org")
        assert client.rcpt("b@example.org")[0] == 451


def test_greylist_by_networks():
    network_of = runpy.run_path(str(EXAMPLES / "plugins" / "70-greylist.py"))["network_of"]
    assert network_of("192.0.2.7") == network_of("192.0.2.9") != network_of("192.0.3.7")
    assert network_of("2001:db8::1") == network_of("2001:db8::2%eth0") != network_of("2001:db8:0:1::1")
    assert network_of("") == ""


# DKIM


@pytest.fixture(scope="module")
def dkim_key() -> tuple[bytes, bytes]:
    """A private key in PEM, and what stands in DNS."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


def test_dkim(tmp_path, dkim_key):
    private, record = dkim_key
    (tmp_path / "dkim.pem").write_bytes(private)
    config = configure(tmp_path, "90-dkim", domain="example.org", selector="mail", key=f"{tmp_path}/dkim.pem")
    mails = [
        ("Alice <alice@Example.org>", "Subject: hello\r\nFrom: Alice <alice@Example.org>\r\n\r\nhello\r\n..\r\n\r\n"),
        ("bob@example.org", "From: bob@example.org\r\nSubject: =?utf-8?q?gr=C3=BC?=\r\n folded\r\nX: y\r\n\r\nx"),
        ("eve@example.com", "From: eve@example.com\r\n\r\nnot ours\r\n"),
    ]
    with serve("--to", f"maildir:{tmp_path}/out", "--no-trace") as next_server:
        out = ("--to", f"smtp://127.0.0.1:{next_server.port}", "--one-recipient")
        with serve(*out, "--plugins", only(tmp_path, "90-dkim"), *config) as server, server.client() as client:
            for sender, text in mails:
                client.sendmail(sender, ["c@example.net"], text)
    signed, also, foreign = read_maildir(tmp_path / "out")
    for mail in (signed, also):
        assert mail.startswith(b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org;")
        assert dkim.verify(mail, dnsfunc=lambda name, timeout=5: {b"mail._domainkey.example.org.": record}[name])
        assert not dkim.verify(mail.replace(b"From: ", b"From: x"), dnsfunc=lambda name, timeout=5: record)
    assert b"DKIM-Signature" not in foreign


def test_dkim_without_dkimpy_says_what_to_install(tmp_path, dkim_key, monkeypatch):
    (tmp_path / "dkim.pem").write_bytes(dkim_key[0])
    (tmp_path / "dkim.py").write_text("raise ModuleNotFoundError('no')")
    config = configure(tmp_path, "90-dkim", domain="example.org", selector="mail", key=f"{tmp_path}/dkim.pem")
    monkeypatch.syspath_prepend(tmp_path)  # which the command has, too
    result = run("run", "--from", SAMPLE, "--to", "null:", "--plugins", only(tmp_path, "90-dkim"), *config)
    assert result.returncode == 3 and "signing needs dkimpy: pip install dkimpy" in result.stderr
