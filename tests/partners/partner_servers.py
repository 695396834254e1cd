"""Mail servers that the tests start: each with its own folders, on loopback, and nothing of the system's is touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from cli_tools import need
from senders import free_port

MAIN = """\
compatibility_level = 3.6
queue_directory = {home}/spool
data_directory = {home}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {home}/log/maillog
maillog_file_prefixes = {home}/log
myhostname = postfix.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_relay_restrictions = permit_mynetworks, reject
local_recipient_maps =
alias_maps =
alias_database =
message_size_limit = 104857600
smtpd_peername_lookup = no
smtp_dns_support_level = disabled
append_dot_mydomain = no
{more}
"""
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
lmtp      unix  - - n - - lmtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
tlsmgr    unix  - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
{more}
"""


class Postfix:
    """A Postfix, in a `with`. What is not said in `settings`, lines of main.cf, is for sending all it gets to `relayhost`."""

    def __init__(self, home: Path, *, master: str = "", **settings: str) -> None:
        if os.geteuid() != 0:
            pytest.skip("Postfix is started by root")
        self._program = need("postfix")
        self._home = home
        self.port = free_port()
        for name in ("etc", "spool", "data", "log"):
            (home / name).mkdir(parents=True)
        shutil.chown(home / "data", "postfix", "postfix")
        more = "\n".join(f"{name} = {value}" for name, value in settings.items())
        (home / "etc" / "main.cf").write_text(MAIN.format(home=home, more=more))
        (home / "etc" / "master.cf").write_text(MASTER.format(port=self.port, more=master))

    def __enter__(self) -> Self:
        self._command("start")
        self.wait_for(r"starting the Postfix mail system")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._command("abort" if error else "stop")

    def _command(self, word: str) -> None:
        result = subprocess.run([self._program, "-c", self._home / "etc", word], capture_output=True, timeout=60, check=False)
        assert word != "start" or result.returncode == 0, (result, self.log)

    def reload(self) -> None:
        self._command("reload")
        self.wait_for(r"reload -- version")

    @property
    def log(self) -> str:
        path = self._home / "log" / "maillog"
        return path.read_text() if path.exists() else ""

    def wait_for(self, pattern: str, count: int = 1) -> None:
        """Until so many lines of its log have that."""
        give_up = time.monotonic() + 60
        while len(re.findall(pattern, self.log)) < count:
            assert time.monotonic() < give_up, self.log
            time.sleep(0.05)

    def wait_until_sent(self, recipients: int) -> None:
        """Until all are sent; any other status fails the test."""
        give_up = time.monotonic() + 60
        while True:
            statuses = re.findall(r"status=(\w+)", self.log)
            assert set(statuses) <= {"sent"} and time.monotonic() < give_up, self.log
            if len(statuses) >= recipients and ": removed" in self.log:
                return
            time.sleep(0.05)
