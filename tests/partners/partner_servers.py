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
from free_ports import free_port
from senders import UNPACKED, unpacked, wait_for_port

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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

    def wait_for(self, pattern: str, count: int = 1, *, flush: bool = False) -> None:
        """Until so many lines of its log have that. `flush`: what was put off is tried again each second; its queue manager may
        skip a mail that is just being put off, and does not look again soon."""
        give_up = time.monotonic() + 60
        while len(re.findall(pattern, self.log)) < count:
            assert time.monotonic() < give_up, self.log
            if flush:
                self._command("flush")
            time.sleep(1 if flush else 0.05)

    def wait_until_sent(self, recipients: int) -> None:
        """Until all are sent; any other status fails the test."""
        give_up = time.monotonic() + 60
        while True:
            statuses = re.findall(r"status=(\w+)", self.log)
            assert set(statuses) <= {"sent"} and time.monotonic() < give_up, self.log
            if len(statuses) >= recipients and ": removed" in self.log:
                return
            time.sleep(0.05)


SENDMAIL = """\
divert(0)dnl
VERSIONID(`tests of mqcore')
OSTYPE(`linux')
define(`confDOMAIN_NAME', `mx.sendmail.example')
define(`confPID_FILE', `{home}/pid')
define(`QUEUE_DIR', `{home}/queue')
define(`ALIAS_FILE', `')
define(`STATUS_FILE', `/dev/null')
define(`confDONT_PROBE_INTERFACES', `True')
define(`confDONT_BLAME_SENDMAIL', `GroupWritableDirPathSafe,TrustStickyBit')
define(`confDELIVERY_MODE', `background')
define(`SMART_HOST', `smtp:[127.0.0.1]')
define(`SMTP_MAILER_ARGS', `TCP $h {next}')
FEATURE(`nocanonify')
FEATURE(`accept_unresolvable_domains')
FEATURE(`accept_unqualified_senders')
FEATURE(`promiscuous_relay')
FEATURE(`no_default_msa')
{more}
DAEMON_OPTIONS(`Name=MTA, Family=inet, Addr=127.0.0.1, Port={port}')
INPUT_MAIL_FILTER(`mqcore', `S=inet:{milter}@127.0.0.1, F=T, T={limits}')
MAILER(`smtp')
"""


TLS = """\
define(`confSERVER_CERT', `{certificate}')
define(`confSERVER_KEY', `{certificate}')
define(`confCACERT', `{certificate}')
define(`confCACERT_PATH', `{home}')
"""


class Sendmail:
    """A Sendmail, in a `with`, which asks a milter and sends what it took to the next server. These are ports on 127.0.0.1.
    With a `certificate` it offers STARTTLS."""

    def __init__(
        self, home: Path, milter: int, next: int, *, limits: str = "S:10s;R:10s;E:1m", certificate: Path | None = None
    ) -> None:
        self._program = unpacked("usr/libexec/sendmail/sendmail")
        self._home = home
        self.port = free_port()
        (home / "queue").mkdir(parents=True, mode=0o700)
        source = home / "sendmail.mc"
        more = "" if certificate is None else TLS.format(home=home, certificate=home / "certificate")
        if certificate is not None:
            (home / "certificate").write_bytes(certificate.read_bytes())
            (home / "certificate").chmod(0o600)  # or it is not taken
        source.write_text(SENDMAIL.format(home=home, port=self.port, milter=milter, next=next, limits=limits, more=more))
        folder = UNPACKED / "usr" / "share" / "sendmail" / "cf"
        command = [need("m4"), f"-D_CF_DIR_={folder}/", folder / "m4" / "cf.m4", source]
        made = subprocess.run(command, capture_output=True, cwd=folder / "m4", timeout=60, check=True)
        (home / "sendmail.cf").write_bytes(made.stdout)

    def __enter__(self) -> Self:
        # It waits a minute where the machine has no full name, so it gets a machine of its own in that respect.
        script = f"hostname mx.sendmail.example; exec {self._program} -bD -C {self._home}/sendmail.cf"
        environment = os.environ | {"LD_LIBRARY_PATH": str(UNPACKED / "usr" / "lib" / "x86_64-linux-gnu")}
        with (self._home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [need("unshare", "util-linux"), "--mount", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", script],
                stdout=log,
                stderr=log,
                env=environment,
            )
        wait_for_port(self.port, self._process, self._home / "log")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait(30)
