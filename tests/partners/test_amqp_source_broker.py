"""`mqcore run --from amqp:` and RabbitMQ; pika publishes, and reads what is left."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import Broker, refuses
from cli_tools import wait_until
from mail_tools import counted, read_maildir, report, run, start, write_plugin

pika = pytest.importorskip("pika", reason="pika is not installed (pip: pika)")


class Queues:
    """Those of one test."""

    def __init__(self, broker: Broker) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.name = f"test-{uuid.uuid4()}"
        self.url = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue={self.name}"

    def publish(self, count: int, begin: int = 0) -> None:
        for number in range(begin, begin + count):
            body = {"envelope": "a@example.org", "recipient": "b@example.org", "mime": f"Subject: {number}\n\nhello\n"}
            properties = pika.BasicProperties(delivery_mode=2, message_id=f"m{number}")
            self.channel.basic_publish("", self.name, json.dumps(body).encode(), properties, mandatory=True)

    def drain(self, queue: str) -> list[tuple[Any, bytes]]:
        found = []
        for method, properties, body in self.channel.consume(queue, auto_ack=True, inactivity_timeout=0.5):
            if method is None:
                break
            found.append((properties, body))
        self.channel.cancel()
        return found


def make_queues(queues: Queues, *parameters: str) -> str:
    """They are made by a run that finds nothing. Its source."""
    url = "&".join([queues.url, *parameters])
    assert run("run", "--from", f"{url}&until=empty", "--to", "null:").returncode == 0
    return url


@pytest.fixture
def queues(broker: Broker) -> Iterator[Queues]:
    it = Queues(broker)
    yield it
    with contextlib.suppress(pika.exceptions.AMQPError):
        channel = it.connection.channel()
        for end in ("", ".failed", ".retry.1", ".retry.60"):
            channel.queue_delete(it.name + end)
        it.connection.close()


def numbers(mails: list[bytes]) -> list[int]:
    return sorted(int(mail.partition(b"Subject: ")[2].split()[0]) for mail in mails)


def test_a_queue_is_moved_to_a_maildir(queues, tmp_path):
    """What is refused goes to the queue of what failed, what is deferred comes again after a second."""
    plugins = write_plugin(tmp_path / "plugins", "10-refuses", refuses("Subject")).parent
    url = make_queues(queues, "retry=1")
    queues.publish(30)
    command = ["run", "--from", url, "--to", f"maildir:{tmp_path}/out", "--plugins", plugins, "--json", "--metrics", ":0"]
    with start(*command) as process:
        lines = [process.stderr.readline() for _ in range(2)]
        url = re.fullmatch(r"mqcore: metrics at (http://\S+/)\n", lines[1])[1]
        wait_until(lambda: len([*(tmp_path / "out" / "new").iterdir()]) == 27, process)
        with urllib.request.urlopen(f"{url}metrics", timeout=30) as answer:
            metrics = answer.read().decode().splitlines()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "guest" not in out + err, err
    assert numbers(read_maildir(tmp_path / "out")) == [number for number in range(30) if number % 10 != 1]
    failed = queues.drain(f"{queues.name}.failed")
    assert [properties.headers["x-mqcore-error"] for properties, _ in failed] == ["550 5.7.1 no"] * 3
    figures = json.loads(out)["messages"]
    assert (figures["read"], figures["stored"], figures["rejected"], figures["retried"]) == (33, 27, 3, 3)
    assert {
        "mqcore_amqp_connections 2",
        'mqcore_amqp_deliveries_total{redelivered="false"} 33',
        'mqcore_mails_total{result="retried"} 3',
    } <= {*metrics}
    assert 'mqcore_amqp_confirms_total{result="ack"} 6' in metrics
    assert queues.drain(queues.name) == []


def test_until_it_is_empty(queues):
    make_queues(queues)
    queues.publish(200)
    done = run("run", "--from", f"{queues.url}&until=empty", "--to", "null:", "--json")
    assert done.returncode == 0 and counted(report(done)) == {"continued": 200}


def test_what_a_plugin_holds_goes_back_at_the_first_signal(queues, tmp_path):
    held = tmp_path / "held"
    holds = f"""
    def mq_smtp_in_message(context, mail):
        context.start_timer(1000, print, mail)
        with open({str(held)!r}, "ab") as file:
            file.write(b".")
        return True

    hold_timeout = 1200
    """
    plugins = write_plugin(tmp_path / "plugins", "10-holds", holds).parent
    make_queues(queues)
    queues.publish(20)
    with start("run", "--from", queues.url, "--to", "null:", "--plugins", plugins, "--json", "--max-in-flight", 5) as process:
        assert process.stderr.readline().startswith("mqcore: listening on amqp://")
        wait_until(lambda: held.exists() and held.stat().st_size == 5, process)
        wait_until(lambda: queues.channel.queue_declare(queues.name, passive=True).method.message_count == 15, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["messages"]["unfinished"] == 5
    assert len(queues.drain(queues.name)) == 20


@pytest.mark.parametrize("timeout", ["0", "1501"])
def test_nobody_may_hold_a_mail_for_too_long(tmp_path, timeout):
    write_plugin(tmp_path / "plugins", "holds", "def mq_smtp_in_message(context, mail): pass\n")
    (tmp_path / "config.toml").write_text(f"[plugins.holds]\nhold_timeout = {timeout}\n")
    command = ["run", "--from", "amqp://a:b@127.0.0.1:1?queue=q", "--to", "null:", "--plugins", tmp_path / "plugins"]
    done = run(*command, "--config", tmp_path / "config.toml")
    assert done.returncode == 2 and f"plugin holds has hold_timeout = {timeout} in its config" in done.stderr


def test_a_reload_lets_nobody_hold_a_mail_for_too_long(queues, tmp_path):
    """All stays as it was."""
    plugins = write_plugin(tmp_path / "plugins", "holds", "def mq_smtp_in_message(context, mail): pass\n").parent
    config, control = tmp_path / "config.toml", tmp_path / "control.sock"
    config.write_text("[plugins.holds]\nhold_timeout = 5\n")
    make_queues(queues)
    arguments = ("--from", queues.url, "--to", "null:", "--plugins", plugins, "--config", config, "--control", control)
    with start("run", *arguments) as process:
        assert process.stderr.readline().startswith("mqcore: listening on amqp://")
        config.write_text("[plugins.holds]\nhold_timeout = 0\n")
        done = run("ctl", "--socket", control, "reload")
        assert done.returncode == 3 and "plugin holds has hold_timeout = 0 in its config" in done.stderr, done
        status = run("ctl", "--socket", control, "status").stdout
        assert "state: running\n" in status and "reloads: 0; 1 failed\n" in status
        config.write_text("[plugins.holds]\nhold_timeout = 6\n")
        assert run("ctl", "--socket", control, "reload").returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("guest:guest", "guest:wrong"), "ACCESS_REFUSED"),
        (("?queue", "/no-such-vhost?queue"), "NOT_ALLOWED - vhost no-such-vhost not found"),
        (("?queue", "?declare=no&queue"), "NOT_FOUND - no queue"),
    ],
)
def test_what_ends_the_run(queues, change, text):
    done = run("run", "--from", queues.url.replace(*change), "--to", "null:")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 4 and text in last and last.startswith("mqcore: cannot read amqp://127.0.0.1:")
    assert "wrong" not in done.stderr and "guest:" not in done.stderr


@pytest.mark.slow
def test_nothing_is_lost_when_the_broker_is_killed(tmp_path: Path) -> None:
    """From one queue to another. It is started again each time; what is there twice was given twice, or is counted."""
    with Broker() as broker:
        queues = Queues(broker)
        queues.name = "q"
        queues.url = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue=q"
        make_queues(queues)
        queues.publish(6000)
        queues.connection.close()
        out = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue=out"
        with start("run", "--from", f"{queues.url}&until=empty", "--to", out, "--json", "--max-in-flight", 200) as process:
            for part in (1, 3):
                wait_until(lambda part=part: stored(broker) > part * 1000, process)
                broker.kill()
                broker.start()
            text, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        queues = Queues(broker)
        got = [json.loads(body)["mime"].encode() for _, body in queues.drain("out")]
        left = queues.drain("q")
        queues.connection.close()
    counts = json.loads(text)["messages"]
    assert {*numbers(got)} == {*range(6000)} and left == []
    assert len(got) - 6000 <= counts["in_doubt"] + counts["redelivered"] <= 2 * 2 * 200
    assert counts["reconnects"] >= 6


@pytest.mark.slow
def test_a_broker_that_takes_back_what_is_held_for_too_long(tmp_path: Path) -> None:
    """It closes the channel (406); the mail is given again, and stored once. A broker looks every minute, but this one."""
    holds_the_first = """
    calls = []

    def mq_smtp_in_message(context, mail):
        calls.append(mail)
        if len(calls) > 1:
            return False
        context.start_timer(1000, print, mail)
        return True

    hold_timeout = 1200
    """
    plugins = write_plugin(tmp_path / "plugins", "10-holds", holds_the_first).parent
    with Broker(config="consumer_timeout = 1000") as broker:
        broker.control("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
        queues = Queues(broker)
        make_queues(queues)
        queues.publish(1)
        command = ["run", "--from", queues.url, "--to", f"maildir:{tmp_path}/out", "--plugins", plugins, "--json"]
        with start(*command) as process:
            wait_until(lambda: [*(tmp_path / "out").glob("new/*")] != [], process)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "PRECONDITION_FAILED - delivery acknowledgement" in err
        assert numbers(read_maildir(tmp_path / "out")) == [0] and queues.drain(queues.name) == []
        queues.connection.close()
    counts = json.loads(out)["messages"]
    assert (counts["stored"], counts["redelivered"]) == (1, 1), counts


def stored(broker: Broker) -> int:
    """How many are there, as far as the broker knows yet."""
    with contextlib.suppress(pika.exceptions.AMQPError):
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        try:
            return connection.channel().queue_declare("out", passive=True).method.message_count
        finally:
            connection.close()
    time.sleep(0.1)
    return 0
