"""docs/milter.md as it is written, from nothing to a plugin in a Postfix as Debian installs it, on a machine of its own.

That is, with its own network, processes, and folders that Postfix and mqcore use. mqcore is the one that is tested, not one
from PyPI.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import need, need_swaks
from mail_tools import ROOT
from milter_partners import need_postfix

FRESH = """
set -eu
ip link set lo up
hostname mx.example.org
for folder in /opt /etc/postfix /etc/mqcore /var/spool/postfix /var/lib/postfix /var/mail /var/log; do
    mkdir -p $folder
    cp -a $folder {home}/copy 2>/dev/null || true
    mount -t tmpfs -o mode=755 tmpfs $folder
    case $folder in /etc/postfix|/var/spool/postfix|/var/lib/postfix) cp -a {home}/copy/. $folder/ ;; esac
    rm -rf {home}/copy
done
rm -rf /var/spool/postfix/*
: > {home}/empty
mount --bind {home}/empty /etc/resolv.conf  # there is nobody to be asked
chmod 1777 /var/mail
install -d -o postfix -g postfix /var/lib/postfix
mkdir -p /opt/mqcore/bin
ln -s {mqcore} /opt/mqcore/bin/mqcore
cp /usr/share/postfix/main.cf.debian /etc/postfix/main.cf
cp /usr/share/postfix/master.cf.dist /etc/postfix/master.cf
postconf -e 'myhostname = mx.example.org' 'mydestination = localhost' 'inet_interfaces = loopback-only' 'alias_maps =' \\
    'alias_database =' 'inet_protocols = ipv4' 'mynetworks = 127.0.0.0/8' 'maillog_file = /var/log/mail.log'
postfix start 2> /dev/null
"""


def blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / "milter.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_from_nothing_to_a_plugin_in_postfix(tmp_path: Path) -> None:
    need_postfix()
    need_swaks()
    need("ip", "iproute2")
    unshare = need("unshare", "util-linux")
    install, milter, postfix, swaks, _bench = blocks("sh")
    (plugin,) = blocks("python")
    (tmp_path / "plugin").write_text(plugin)
    prepare = "".join(line for line in install.splitlines(keepends=True) if line.startswith("mkdir"))
    good, bad = swaks.splitlines()
    script = f"""
{FRESH.format(home=tmp_path, mqcore=Path(sys.executable).parent / "mqcore")}
{prepare}
cp {tmp_path}/plugin /etc/mqcore/plugins/10-subject.py
{milter.rstrip()} 2> {tmp_path}/milter &
until grep -q listening {tmp_path}/milter; do sleep 0.1; done
{postfix}
until grep -q 'reload --' /var/log/mail.log; do sleep 0.1; done
{good} > {tmp_path}/good 2>&1
{bad} > {tmp_path}/bad 2>&1 || true
until [ -s /var/mail/root ] || grep -q 'status=[bd]' /var/log/mail.log; do sleep 0.1; done
cp /var/log/mail.log {tmp_path}/maillog
cp /var/mail/root {tmp_path}/mailbox
"""
    (tmp_path / "script").write_text(script)
    result = subprocess.run(
        [unshare, "--mount", "--net", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child", "sh", tmp_path / "script"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
    )
    assert result.returncode == 0, result
    assert re.search(r"^<-  250 2\.0\.0 Ok: queued as \w+$", (tmp_path / "good").read_text(), re.MULTILINE)
    assert "<** 550 5.7.1 we do not take this kind of mail\n" in (tmp_path / "bad").read_text()
    mailbox = (tmp_path / "mailbox").read_text()
    assert mailbox.count("\nX-Filtered: yes, from 127.0.0.1\n") == mailbox.count("\nSubject: ") == 1
