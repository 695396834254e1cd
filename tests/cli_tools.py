"""What the tests of the command share."""

from __future__ import annotations

import contextlib
import shutil
import signal
import smtplib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mail_tools import NO_PLUGINS, report, start
from waiting import until_in_thread

TEXT = b"Subject: hello\r\n\r\nhello\r\n..\r\n"


class Server:
    """The command, listening."""

    def __init__(self, process: subprocess.Popen[str], code: int) -> None:
        self.process = process
        self.code = code
        line = process.stderr.readline()
        if line == NO_PLUGINS:
            line = process.stderr.readline()
        if not line.startswith("mqcore: listening on "):
            process.kill()
            pytest.fail(line + process.stderr.read())
        self.url = line.removeprefix("mqcore: listening on ").strip()
        self.port = 0 if ":unix:" in self.url else int(self.url.rpartition(":")[2])
        self.figures: dict[str, Any] = {}

    def client(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.port, local_hostname="client.example", timeout=30)

    def stop(self) -> subprocess.CompletedProcess[str]:
        self.process.send_signal(signal.SIGTERM)
        result = finish(self.process)
        assert result.returncode == self.code, result
        self.figures = report(result)
        return result


@contextlib.contextmanager
def serve(*arguments: object, source: str = "smtp://127.0.0.1:0", code: int = 0, **options: Any) -> Iterator[Server]:
    """Until the end of the block, when it must end with the exit code `code`."""
    # This machine may have no full name, of which there is a warning.
    name = () if "--hostname" in arguments or source.startswith("milter:") else ("--hostname", "mx.example.org")
    with start("run", "--from", source, "--json", *name, *arguments, **options) as process:
        try:
            server = Server(process, code)
            yield server
            if process.poll() is None:
                server.stop()
        finally:
            process.kill()


def wait_until(predicate: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    def is_so() -> bool:
        if predicate():
            return True
        assert process.poll() is None, process.communicate()
        return False

    until_in_thread(is_so)


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def need(program: str, package: str | None = None) -> str:
    """Where the program is; without it the test is skipped, and says which package of Debian has it."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program}: apt-get install {package or program}")
    return path


def need_swaks(*, tls: bool = False) -> str:
    """`swaks`; for TLS it needs a module of Perl, which it is often installed without."""
    path = need("swaks", "swaks libnet-ssleay-perl" if tls else None)
    if tls and subprocess.run([need("perl"), "-MNet::SSLeay", "-e", "1"], capture_output=True, timeout=60).returncode:
        pytest.skip("needs a swaks with TLS, that is Perl's Net::SSLeay: apt-get install libnet-ssleay-perl")
    return path
