"""`mqcore run --from milter:...`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli_tools import serve
from mail_tools import counted, read_maildir, run, write_plugin
from milter_tools import Mta

MIME = b"Subject: hello\r\n\r\nbody\r\n"


def ask(where: Any, *mails: Sequence[str]) -> list[str]:
    """What the server that asks is told about a mail to each of these recipients."""

    async def main() -> list[str]:
        mta = await Mta.at(where)
        await mta.connect()
        replies = [await mta.send_mail(MIME, "a@example.org", *recipients) for recipients in mails]
        mta.leave()
        return replies

    return asyncio.run(main())


def plugins(folder: Path) -> Path:
    write_plugin(
        folder,
        "10-refuse",
        """
        def mq_smtp_in_message(context, message):
            if message.recipient == "no@example.org":
                message.reject(550, "5.1.1 no such user")
        """,
    )
    return folder


def test_mail_stays_with_the_server_that_asks(tmp_path: Path) -> None:
    with serve("--plugins", plugins(tmp_path / "plugins"), source="milter://127.0.0.1:0") as server:
        assert ask(server.port, ["b@example.org"], ["no@example.org"]) == ["continue", "550 5.1.1 no such user"]
    assert counted(server.figures) == {"continued": 1, "rejected": 1}


def test_with_a_sink_it_goes_there(tmp_path: Path) -> None:
    source = f"milter:unix:{tmp_path}/milter"
    with serve("--to", f"maildir:{tmp_path}/in", "--plugins", plugins(tmp_path / "plugins"), source=source):
        assert ask(str(tmp_path / "milter"), ["b@example.org"], ["no@example.org"]) == ["discard", "550 5.1.1 no such user"]
    assert read_maildir(tmp_path / "in") == [MIME]


def test_what_is_refused_for_one_of_several_is_set_aside(tmp_path: Path) -> None:
    options = ("--plugins", plugins(tmp_path / "plugins"), "--failed", f"maildir:{tmp_path}/failed")
    with serve(*options, source="milter://127.0.0.1:0") as server:
        assert ask(server.port, ["b@example.org", "no@example.org"]) == ["continue"]
    assert len(read_maildir(tmp_path / "failed")) == 1


def test_only_a_milter_needs_no_sink() -> None:
    result = run("run", "--from", "smtp://127.0.0.1:0")
    assert (result.returncode, result.stderr.splitlines()[-1]) == (
        2,
        "mqcore run: error: the following arguments are required: --to",
    )


def test_hooks_that_are_never_called_are_told(tmp_path: Path) -> None:
    write_plugin(tmp_path, "10-login", "def mq_smtp_in_authenticate(context, message, login, password): return False")
    with serve("--plugins", tmp_path, source="milter://127.0.0.1:0") as server:
        result = server.stop()
    assert "mq_smtp_in_authenticate of 10-login is never called" in result.stderr
