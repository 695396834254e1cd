"""miltertest, OpenDKIM's program that tests milters, as the server that asks."""

from __future__ import annotations

from pathlib import Path

from cli_tools import need, serve
from mail_tools import write_plugin
from senders import run

SCRIPT = """
local function expect(what, wanted)
    if what ~= wanted then error("got " .. tostring(what) .. ", not " .. tostring(wanted)) end
end

conn = mt.connect("inet:%d@127.0.0.1")
if conn == nil then error("no connection") end
expect(mt.conninfo(conn, "client.example", "192.0.2.7"), nil)
expect(mt.getreply(conn), SMFIR_CONTINUE)
mt.helo(conn, "client.example")
mt.macro(conn, SMFIC_MAIL, "i", "QUEUE")
mt.mailfrom(conn, "<a@example.org>")
expect(mt.getreply(conn), SMFIR_CONTINUE)
mt.rcptto(conn, "<nobody@example.org>")
expect(mt.getreply(conn), SMFIR_REPLYCODE)
mt.rcptto(conn, "<b@example.org>")
expect(mt.getreply(conn), SMFIR_CONTINUE)
mt.header(conn, "Subject", "hello")
mt.header(conn, "X-Old", "1")
mt.eoh(conn)
mt.bodystring(conn, "body\\r\\n")
mt.eom(conn)
expect(mt.getreply(conn), SMFIR_CONTINUE)
expect(mt.eom_check(conn, MT_HDRINSERT, "X-New", " QUEUE"), true)
expect(mt.eom_check(conn, MT_HDRDELETE, "X-Old"), true)
expect(mt.eom_check(conn, MT_BODYCHANGE, "new\\r\\n"), true)
expect(mt.eom_check(conn, MT_RCPTADD, "<c@example.org>"), true)
expect(mt.eom_check(conn, MT_RCPTDELETE, "<b@example.org>"), true)
mt.disconnect(conn)
"""


def test_miltertest(tmp_path: Path) -> None:
    program = need("miltertest")
    write_plugin(
        tmp_path / "plugins",
        "10-change",
        """
        def mq_smtp_in_connect(context, message):
            message.connection.data["peer"] = message.connection.peer

        def mq_smtp_in_mailfrom(context, message, address):
            assert (message.connection.data["peer"], message.connection.helo) == ("192.0.2.7", "client.example")

        def mq_smtp_in_rcptto(context, message, address):
            if address == "nobody@example.org":
                message.reject(550, "5.1.1 no such user")

        def mq_smtp_in_message(context, message):
            message.headers.remove("X-Old")
            message.headers.add("X-New", message.json["queue_id"])
            message.mime = message.mime.replace(b"body", b"new")
            message.recipient = "c@example.org"
        """,
    )
    with serve("--plugins", tmp_path / "plugins", source="milter://127.0.0.1:0") as server:
        (tmp_path / "script").write_text(SCRIPT % server.port)
        run([program, "-s", tmp_path / "script"])
