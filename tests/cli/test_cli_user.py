"""--user: the port is root's, all else is done by somebody with no privileges."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cli_tools import serve
from mail_tools import run, write_plugin
from smtp_tools import certificate

from mqcore.cli import user

NOBODY = pwd.getpwnam("nobody")
LOOKS = """
    import json, os

    def tried(function):
        try:
            function(0)
        except OSError as error:
            return error.strerror
        return "done"

    def mq_initialize():
        ids = [*os.getresuid(), *os.getresgid()]
        back = [tried(function) for function in (os.setuid, os.seteuid, os.setgid, os.setegid)]
        print("who", json.dumps([ids, os.getgroups(), back, os.environ["USER"]]), flush=True)
    """

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def folder():
    """That everyone may look into, as pytest's are for one user only."""
    path = Path(tempfile.mkdtemp(prefix="mqcore-tests-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@needs_root
def test_who_it_is(folder):
    write_plugin(folder / "plugins", "10-look", LOOKS)
    options = ("--plugins", folder / "plugins", "--user", "nobody")
    result = run("run", "--from", "smtp://127.0.0.1:0", "--to", "mbox:/root/not-mine", *options)
    assert result.returncode == 4, result
    assert "Permission denied" in result.stderr  # the sink is opened by him too
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("who ")]
    ids, groups, back, name = json.loads(line.removeprefix("who "))
    assert ids == [NOBODY.pw_uid] * 3 + [NOBODY.pw_gid] * 3
    assert groups == [NOBODY.pw_gid]
    assert back == ["Operation not permitted"] * 4
    assert name == "nobody"


@needs_root
def test_a_port_of_root(folder):
    """Which port is free below 1024 is not known: one of them is."""
    for port in (987, 953, 921):
        with serve("--to", "null:", "--user", "nobody", source=f"smtp://127.0.0.1:{port}") as server, server.client() as client:
            assert client.sendmail("a@example.org", "b@example.org", "Subject: hello\n\nhello\n") == {}
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            assert f"Uid:\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}\n" in status
            assert "CapEff:\t0000000000000000\n" in status
        return


@pytest.fixture
def python_for_all():
    """Workers are started by him, so he needs a Python that he may run; that of a root who keeps it at home is none."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with contextlib.suppress(OSError):
        if subprocess.run([sys.executable, "-c", ""], user="nobody", extra_groups=[], check=False).returncode == 0:
            return
    pytest.skip(f"the user nobody may not run {sys.executable}")


@needs_root
def test_a_key_that_he_cannot_read(folder):
    """A reload, which reads it again, would fail."""
    pair = folder / "pair.pem"
    shutil.copy(certificate().file, pair)
    pair.chmod(0o600)
    options = ("--tls-certificate", pair, "--user", "nobody", "--hostname", "mx.example.org")
    result = run("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", *options)
    assert result.returncode == 4, result
    assert f"cannot read {pair}" in result.stderr


def test_workers_are_his(python_for_all):
    with serve("--to", "null:", "--user", "nobody", "--workers", 1) as server, server.client() as client:
        assert client.sendmail("a@example.org", "b@example.org", "Subject: hello\n\nhello\n") == {}
        (pid,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        assert f"Uid:\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}\t" in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no-such-user", "--user no-such-user: there is no user 'no-such-user'"),
        ("root", "--user root: root has root's privileges, which are to be given up; make a user for the server"),
    ],
)
def test_users_that_will_not_do(name, text):
    result = run("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", "--user", name)
    assert result.returncode == 2, result
    assert text in result.stderr


def test_one_who_is_not_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    monkeypatch.setattr(os, "getuid", lambda: NOBODY.pw_uid)
    user.become("nobody")  # which it is
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ValueError, match="only root can become the user nobody"):
        user.become("nobody")
