"""A Postfix of the bench's own, with folders of its own. Root starts it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

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
smtpd_relay_restrictions = permit_mynetworks, reject
mynetworks = 127.0.0.0/8
local_recipient_maps =
alias_maps =
alias_database =
default_transport = discard:
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
in_flow_delay = 0
"""
SERVICES = """\
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""


@contextlib.contextmanager
def postfix(home: Path, services: str, main: str = "") -> Iterator[int]:
    """The process id of its master. `services`: what there is besides SERVICES, as what listens; `main`: what it has besides
    MAIN. All folders above `home` are open to everybody."""
    for name in ("etc", "spool", "data", "log"):
        (home / name).mkdir(parents=True)
    shutil.chown(home / "data", "postfix", "postfix")
    (home / "etc" / "main.cf").write_text(MAIN.format(home=home) + main)
    (home / "etc" / "master.cf").write_text(services + SERVICES)
    command = ["postfix", "-c", str(home / "etc")]
    subprocess.run([*command, "start"], check=True, capture_output=True)
    try:
        yield int((home / "spool" / "pid" / "master.pid").read_text())
    finally:
        subprocess.run([*command, "stop"], check=True, capture_output=True)
