"""Two gateways, each a process of its own, that deliver to each other."""

from __future__ import annotations

import smtplib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_tools import TEXT, Server, serve
from mail_tools import counted, write_plugin


class OverUnix(smtplib.SMTP):
    def _get_socket(self, host, port, timeout):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(host)
        return sock


@pytest.fixture
def gateways(tmp_path) -> Iterator[tuple[Server, Server]]:
    """The second one knows some recipients, whom it refuses: all other mail goes round."""
    plugin = write_plugin(
        tmp_path / "plugins",
        "10-known",
        """
        def mq_smtp_in_rcptto(context, message, address):
            if address.startswith("known"):
                message.reject(550, "5.2.1 known, and on holidays")
        """,
    )
    one, other = (f"smtp:unix:{tmp_path}/{name}" for name in ("one", "other"))
    with (
        serve("--to", other, "--one-recipient", "--hostname", "one.example", source=one) as first,
        serve("--to", one, "--one-recipient", "--hostname", "other.example", "--plugins", plugin, source=other) as second,
    ):
        yield first, second


def send(path: Path, recipient: str) -> str:
    """What a client is told in the end."""
    with OverUnix(str(path), local_hostname="client.example", timeout=60) as client:
        try:
            client.sendmail("a@example.org", [recipient], TEXT)
        except smtplib.SMTPDataError as error:
            return f"{error.smtp_code} {error.smtp_error.decode()[:5]}"
    return "250"


def test_forty_mails_that_go_round_stop_nobody(gateways, tmp_path):
    """An ordinary client is served all the while: nobody is kept waiting until the thirty seconds of a stall are over."""
    done = threading.Event()
    told = []

    def go_round(number: int) -> None:
        while not done.is_set():
            told.append(send(tmp_path / ("one", "other")[number % 2], "loop@example.org"))

    with ThreadPoolExecutor(40) as pool:
        rounds = [pool.submit(go_round, number) for number in range(40)]
        try:
            for _ in range(20):
                assert send(tmp_path / "one", "known@example.org") == "550 5.2.1"
        finally:
            done.set()
        for each in rounds:
            each.result()
    assert "451 4.4.6" in told and set(told) <= {"451 4.4.6", "554 5.4.6"}


def test_one_mail_that_goes_round_is_refused_for_good(gateways, tmp_path):
    first, second = gateways
    assert send(tmp_path / "one", "loop@example.org") == "554 5.4.6"
    first.stop()
    second.stop()
    assert counted(first.figures) == counted(second.figures) | {"rejected": 11} == {"rejected": 11}
