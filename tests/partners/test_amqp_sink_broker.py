"""`mqcore run --to amqp:` and RabbitMQ; pika reads what is there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from broker import Broker
from cli_tools import serve, wait_until
from free_ports import free_port
from mail_tools import report, run, start

from mqcore.mail.amqp.body import read_body

pika = pytest.importorskip("pika", reason="pika is not installed (pip: pika)")

MAILS = [b"Subject: %d\n\n\xff hello\n" % number for number in range(30)]


@pytest.fixture
def mbox(tmp_path: Path) -> Path:
    path = tmp_path / "mbox"
    path.write_bytes(b"".join(b"From a@b Tue Nov 24 05:31:47 2026\n%b\n" % mail for mail in MAILS))
    return path


class Queue:
    """One of RabbitMQ's, which is not there yet."""

    def __init__(self, broker: Any, channel: Any) -> None:
        self.name = f"test-{uuid.uuid4()}"
        self.url = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue={self.name}"
        self.channel = channel

    def drain(self) -> list[tuple[Any, bytes]]:
        found = []
        for method, properties, body in self.channel.consume(self.name, auto_ack=True, inactivity_timeout=1):
            if method is None:
                break
            found.append((properties, body))
        self.channel.cancel()
        return found


@pytest.fixture
def queue(broker: Any) -> Iterator[Queue]:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    it = Queue(broker, connection.channel())
    yield it
    with contextlib.suppress(pika.exceptions.AMQPError):
        channel = connection.channel()
        channel.queue_delete(it.name)
        channel.queue_delete(f"{it.name}.failed")
        connection.close()


def test_mails_from_an_mbox(mbox, queue):
    done = run("run", "--from", f"mbox:{mbox}", "--to", queue.url, "--json")
    assert done.returncode == 0, done.stderr
    assert "guest:guest" not in done.stdout + done.stderr
    got = queue.drain()
    assert sorted(read_body(body).mime for _, body in got) == sorted(MAILS)
    properties, body = got[0]
    assert (properties.delivery_mode, properties.content_type) == (2, "application/json")
    assert properties.message_id == json.loads(body)["message-id"]
    again = run("run", "--from", f"mbox:{mbox}", "--to", queue.url, "--json")
    assert report(again)["messages"]["present"] == len(MAILS) and queue.drain() == []


def test_mails_by_smtp(queue):
    with serve("--to", queue.url, "--one-recipient", "--metrics", ":0") as server, server.client() as client:
        for number in range(10):
            client.sendmail("a@example.org", ["b@example.org"], f"Subject: {number}\r\n\r\nhello\r\n")
        url = re.fullmatch(r"mqcore: metrics at (http://\S+/)\n", server.process.stderr.readline())[1]
        with urllib.request.urlopen(f"{url}metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        assert {'mqcore_amqp_confirms_total{result="ack"} 10', "mqcore_amqp_connections 1", "mqcore_amqp_unconfirmed 0"} <= {
            *lines
        }
    bodies = [json.loads(body) for _, body in queue.drain()]
    assert sorted(body["mime"].partition("Subject: ")[2][0] for body in bodies) == [*"0123456789"]
    assert {(body["envelope"], body["recipient"]) for body in bodies} == {("a@example.org", "b@example.org")}
    assert bodies[0]["connection"] == {"remote-ip": "127.0.0.1", "secure": False}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("guest:guest", "guest:wrong"), "ACCESS_REFUSED"),
        (("?queue", "/no-such-vhost?queue"), "NOT_ALLOWED - vhost no-such-vhost not found"),
        (("?queue", "?declare=no&queue"), "NOT_FOUND - no queue"),
        (("?queue", "?exchange=no-such-exchange&queue"), "NOT_FOUND - no exchange 'no-such-exchange'"),
        (("?queue", "?exchange=amq.direct&queue"), "go to no queue (312 NO_ROUTE)"),
    ],
)
def test_what_ends_the_run(mbox, queue, change, text):
    done = run("run", "--from", f"mbox:{mbox}", "--to", queue.url.replace(*change), "--json")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 4 and text in last and last.startswith("mqcore: cannot publish to amqp://127.0.0.1:")
    assert "wrong" not in done.stderr and "guest:" not in done.stderr


def test_a_queue_that_is_full(mbox, queue):
    """It refuses what it has no room for, until there is room."""
    queue.channel.queue_declare(queue.name, durable=True, arguments={"x-max-length": 10, "x-overflow": "reject-publish"})
    found: list[Any] = []
    with start("run", "--from", f"mbox:{mbox}", "--to", queue.url, "--json") as process:
        try:
            while process.poll() is None:
                found += queue.drain()
        finally:
            process.kill()
        assert process.returncode == 0, process.stderr.read()
    found += queue.drain()
    assert sorted(read_body(body).mime for _, body in found) == sorted(MAILS)


@pytest.mark.slow
def test_nothing_is_lost_when_the_broker_is_killed(tmp_path):
    """It is started again each time, and all mails are there; those that are there twice were counted as in doubt."""
    mails = [b"Subject: %d\n\nhello\n" % number for number in range(10_000)]
    path = tmp_path / "mbox"
    path.write_bytes(b"".join(b"From a@b Tue Nov 24 05:31:47 2026\n%b\n" % mail for mail in mails))
    with Broker() as broker:
        url = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue=q"
        with start("run", "--from", f"mbox:{path}", "--to", url, "--json") as process:
            try:
                for part in (2, 5):
                    wait_until(lambda part=part: stored(broker) > part * 1000, process)
                    broker.kill()
                    broker.start()
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        assert process.returncode == 0, err
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        found = Queue(broker, connection.channel())
        found.name = "q"
        mimes = [read_body(body).mime for _, body in found.drain()]
        connection.close()
    counts = json.loads(out)["messages"]
    assert set(mimes) == set(mails) and counts["stored"] == len(mails)
    assert 0 <= len(mimes) - len(mails) <= counts["in_doubt"]


def stored(broker: Broker) -> int:
    """How many are in the queue, as far as the broker knows yet."""
    with contextlib.suppress(pika.exceptions.AMQPError):
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        try:
            return connection.channel().queue_declare("q", passive=True).method.message_count
        finally:
            connection.close()
    return 0


@pytest.mark.slow
def test_tls(mbox, tmp_path):
    """A broker whose certificate is of an authority that the system trusts, and is not."""
    authority, port = trustme.CA(), free_port()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    config = f"""
        listeners.ssl.1 = 127.0.0.1:{port}
        ssl_options.cacertfile = {tmp_path}/authority.pem
        ssl_options.certfile = {tmp_path}/certificate.pem
        ssl_options.keyfile = {tmp_path}/key.pem
    """
    with Broker(config="\n".join(map(str.strip, config.splitlines()))) as broker:
        command = "run", "--from", f"mbox:{mbox}", "--to", f"amqps://guest:guest@localhost:{port}?queue=q", "--json"
        done = run(*command)
        assert done.returncode == 4 and f"localhost:{port}: its certificate is not valid" in done.stderr
        trusting = os.environ | {"SSL_CERT_FILE": str(tmp_path / "authority.pem")}
        done = subprocess.run(
            [sys.executable, "-m", "mqcore", *command], env=trusting, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        found = Queue(broker, connection.channel())
        found.name = "q"
        assert sorted(read_body(body).mime for _, body in found.drain()) == sorted(MAILS)
        connection.close()
