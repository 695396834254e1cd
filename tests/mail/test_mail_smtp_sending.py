"""Mails from a file to the next server: what it gets, its answers, and connections that break."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from types import SimpleNamespace

import pytest
from sending_tools import DROP, SILENCE, STAGES, TEXT, deliver, delivering, next_server
from smtp_tools import run
from waiting import until

from mqcore.mail import SinkError
from mqcore.mail.smtp.pool import MAX_CONNECTIONS
from mqcore.mail.smtp.sink import SmtpSink

WIRE = TEXT.replace(b"\n", b"\r\n")
MANY = [TEXT + b"%d\n" % number for number in range(100)]


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (0.001, 0.001, 0.001))


def counts(report):
    names = ("continued", "completed", "failed", "rejected", "unfinished", "in_doubt", "present")
    return {name: count for name in names if (count := getattr(report.counts, name))}


def sets(**fields):
    """A plugin that sets these of each mail."""

    def hook(context, message):
        for name, value in fields.items():
            setattr(message, name, value)

    return {"10-set": SimpleNamespace(mq_smtp_in_message=hook)}


# What the server gets


@run
async def test_a_mail(tmp_path):
    async with next_server() as server:
        report, _ = await deliver(server, tmp_path)
    assert server.mails == [("a@example.org", ["b@example.org"], WIRE)]
    assert server.commands[1:] == [
        f"MAIL FROM:<a@example.org> SIZE={len(WIRE) + 3}",
        "RCPT TO:<b@example.org>",
        "DATA",
        "QUIT",
    ]
    assert counts(report) == {"continued": 1}


@run
async def test_a_mail_in_one_go(tmp_path):
    """Where that is offered; and to whom the server takes."""
    async with next_server({"rcptto": ["250 ok", "550 5.1.1 no", "250 ok"]}) as server:
        server.extensions = ["PIPELINING"]
        recipients = [f"{name}@example.org" for name in "bcd"]
        report, _ = await deliver(server, tmp_path, plugins=sets(recipients=recipients))
    assert server.mails == [("a@example.org", ["b@example.org", "d@example.org"], WIRE)]
    asked = [command.partition(" ")[0] for command in server.commands]
    assert asked == ["EHLO", "MAIL", "RCPT", "RCPT", "RCPT", "DATA", "QUIT"]
    assert [result["code"] for result in reasons(tmp_path)[0]["results"]] == [250, 550, 250]
    assert counts(report) == {"rejected": 1}


@run
async def test_a_mail_that_is_too_big_for_the_server(tmp_path):
    async with next_server() as server:
        server.extensions = ["SIZE 20"]
        report, _ = await deliver(server, tmp_path)
        assert [command.partition(" ")[0] for command in server.commands] == ["EHLO", "QUIT"]
    assert counts(report) == {"rejected": 1}
    assert reasons(tmp_path)[0]["rejected"]["code"] == 552


@run
async def test_over_a_unix_socket(tmp_path):
    async with next_server() as server:
        path = tmp_path / "socket"
        async with await asyncio.start_unix_server(server._serve, path):
            sink = SmtpSink(f"unix:{path}", source=tmp_path / "mbox")
            report, _ = await deliver(server, tmp_path, sink=sink)
    assert server.mails == [("a@example.org", ["b@example.org"], WIRE)]
    assert counts(report) == {"continued": 1}


@run
async def test_eight_bits_are_announced_where_that_is_offered(tmp_path):
    async with next_server() as server:
        await deliver(server, tmp_path, ["é\n".encode()])
    assert server.commands[1] == "MAIL FROM:<a@example.org> SIZE=7 BODY=8BITMIME"
    assert [content for *_, content in server.mails] == ["é\r\n".encode()]


@run
async def test_eight_bits_are_sent_to_a_server_that_says_nothing_of_them(tmp_path):
    async with next_server({"ehlo": ["502 what?"]}) as server:
        await deliver(server, tmp_path, ["é\n".encode()], envelope="")
    assert server.commands[1].startswith("HELO ")
    assert server.commands[2] == "MAIL FROM:<>"
    assert server.mails == [("", ["b@example.org"], "é\r\n".encode())]


@run
async def test_addresses_that_are_not_ascii(tmp_path):
    async with next_server() as server:
        report, _ = await deliver(server, tmp_path, recipient="é@example.org")
        assert server.mails == [("a@example.org", ["é@example.org"], WIRE)]
        assert server.commands[1].endswith(" SMTPUTF8")
        (tmp_path / "other").mkdir()
        server.extensions = []
        report, _ = await deliver(server, tmp_path / "other", recipient="é@example.org")
    assert counts(report) == {"rejected": 1}
    (reason,) = reasons(tmp_path / "other")
    assert reason["rejected"] == {"code": 553, "text": "5.6.7 the next server takes ASCII addresses only"}


@run
async def test_connections_are_used_again_and_not_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 3)
    async with next_server() as server:
        report, _ = await deliver(server, tmp_path, MANY)
        assert sorted(content for *_, content in server.mails) == sorted(mime.replace(b"\n", b"\r\n") for mime in MANY)
        assert (server.most_open, server.connections) == (3, 3)
        assert server.commands.count("QUIT") == 3
        assert server.commands.count("RSET") == 0
    assert counts(report) == {"continued": 100}


@run
async def test_an_idle_connection_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.pool.IDLE_TIMEOUT", 0.001)

    async def slow(context, message):
        if message.mime == MANY[1]:
            await until(lambda: "QUIT" in server.commands)

    async with next_server() as server:
        await deliver(server, tmp_path, MANY[:2], {"10-slow": SimpleNamespace(mq_smtp_out_data=slow)})
        assert len(server.mails) == server.connections == 2


# Its answers


def reasons(folder):
    return [json.loads(line) for line in (folder / "reasons.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", STAGES)
@run
async def test_a_permanent_error_at_any_stage(tmp_path, stage):
    async with next_server({stage: ["550 5.7.1 not you"]}) as server:
        report, failed = await deliver(server, tmp_path, MANY[:3], max_in_flight=1)
        assert len(server.mails) == 2 and server.connections == 1
        assert server.commands.count("RSET") == 1
    assert counts(report) == {"continued": 2, "rejected": 1}
    assert [mail.mime for mail in failed.mails] == MANY[:1]
    (reason,) = reasons(tmp_path)
    assert reason["rejected"] == {"code": 550, "text": "5.7.1 not you"}
    assert reason["results"] == [
        {"recipient": "b@example.org", "state": stage, "code": 550, "description": "5.7.1 not you"}
    ]
    assert report.exit_code == 1


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("answer", ["450 4.2.1 not now", "421 4.3.2 going", DROP])
@run
async def test_a_temporary_error_at_any_stage_is_tried_again(tmp_path, stage, answer):
    async with next_server({stage: [answer] * 3}) as server:
        report, failed = await deliver(server, tmp_path)
        assert [content for *_, content in server.mails] == [WIRE]
    in_doubt = {"in_doubt": 3} if (stage, answer) == ("message", DROP) else {}
    assert counts(report) == {"continued": 1} | in_doubt
    assert failed.mails == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("answer", ["450 4.2.1 not now", DROP])
@run
async def test_a_temporary_error_that_stays(tmp_path, stage, answer):
    async with next_server({stage: [answer] * 10}) as server:
        report, _ = await deliver(server, tmp_path)
        assert server.mails == [] and len(server.script[stage]) == 6
    in_doubt = {"in_doubt": 4} if (stage, answer) == ("message", DROP) else {}
    assert counts(report) == {"rejected": 1} | in_doubt
    (reason,) = reasons(tmp_path)
    if answer == DROP:
        assert reason["rejected"]["code"] == 451 and reason["rejected"]["text"].startswith("4.4.2 ")
        assert reason["results"][0]["code"] is None
    else:
        assert reason["rejected"] == {"code": 450, "text": "4.2.1 not now"}


@pytest.mark.parametrize("stage", STAGES)
@run
async def test_a_server_that_falls_silent(tmp_path, stage, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.outgoing.COMMAND_TIMEOUT", 0.5)
    monkeypatch.setattr("mqcore.mail.smtp.outgoing.ANSWER_TIMEOUT", 0.5)
    async with next_server({stage: [SILENCE]}) as server:
        report, _ = await deliver(server, tmp_path)
        assert len(server.mails) == 1 and server.connections == 2
    assert counts(report) == {"continued": 1} | ({"in_doubt": 1} if stage == "message" else {})


@pytest.mark.parametrize("answer", ["not SMTP", "250 what?", "199 what?", "999 what?"])
@run
async def test_an_answer_to_DATA_that_makes_no_sense(tmp_path, answer):  # noqa: N802
    async with next_server({"data": [answer]}) as server:
        report, _ = await deliver(server, tmp_path)
        assert len(server.mails) == 1
    assert counts(report) == {"continued": 1}


@pytest.mark.parametrize("stage", ["mailfrom", "rcptto", "data"])
@pytest.mark.parametrize("answer", ["421 4.3.2 enough of this connection", DROP])
@run
async def test_a_connection_that_the_server_had_enough_of_costs_no_attempt(tmp_path, stage, answer, monkeypatch):
    """Many servers close a connection after so many mails."""
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (3600.0,))
    script = {stage: ["354 go on" if stage == "data" else "250 ok", answer] * 10}
    async with next_server(script) as server:
        report, _ = await deliver(server, tmp_path, MANY[:10], max_in_flight=1)
        assert len(server.mails) == 10
    assert counts(report) == {"continued": 10}


@run
async def test_an_idle_connection_that_the_server_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (3600.0,))

    async def disconnect(context, message):
        server.disconnect()
        await until(lambda: not server.open)

    async with next_server() as server:
        plugins = {"10-disconnect": SimpleNamespace(mq_smtp_out_data=disconnect)}
        report, _ = await deliver(server, tmp_path, MANY[:5], plugins, max_in_flight=1)
        assert len(server.mails) == server.connections == 5
    assert counts(report) == {"continued": 5}


# Many recipients


@run
async def test_mixed_recipients(tmp_path):
    """Each is tried as often as it needs, and no other twice."""
    recipients = [f"{name}@example.org" for name in ("yes", "later", "no", "never", "yes")]
    script = {
        "later@example.org": ["450 4.2.0 later"] * 2,
        "no@example.org": ["550 5.1.1 no such user"],
        "never@example.org": ["450 4.2.0 never"] * 9,
    }
    async with next_server(script) as server:
        report, failed = await deliver(server, tmp_path, plugins=sets(recipients=recipients))
        assert [to for _, to, _ in server.mails] == [["yes@example.org"], ["later@example.org"]]
    assert counts(report) == {"rejected": 1}
    (reason,) = reasons(tmp_path)
    assert reason["rejected"] == {"code": 550, "text": "5.1.1 no such user"}
    assert [(result["recipient"].partition("@")[0], result["state"], result["code"]) for result in reason["results"]] == [
        ("yes", "message", 250),
        ("later", "message", 250),
        ("no", "rcptto", 550),
        ("never", "rcptto", 450),
    ]
    assert len(failed.mails) == 1


@run
async def test_more_recipients_than_the_server_takes_at_a_time(tmp_path):
    recipients = [f"{number}@example.org" for number in range(250)]
    script = {"rcptto": [*["250 ok"] * 100, "452 4.5.3 too many"] * 2}
    async with next_server(script) as server:
        report, _ = await deliver(server, tmp_path, plugins=sets(recipients=recipients))
        assert [len(to) for _, to, _ in server.mails] == [100, 100, 50]
    assert counts(report) == {"continued": 1}


@run
async def test_a_server_that_does_not_forget_a_transaction_is_not_used_again(tmp_path):
    async with next_server({"rcptto": ["550 no"], "rset": ["500 what?"]}) as server:
        report, _ = await deliver(server, tmp_path, MANY[:2], max_in_flight=1)
        assert len(server.mails) == 1 and server.connections == 2
    assert counts(report) == {"continued": 1, "rejected": 1}


@run
async def test_a_second_run_knows_which_recipients_have_the_mail(tmp_path):
    recipients = ["yes@example.org", "no@example.org"]
    async with next_server({"no@example.org": ["550 5.1.1 no such user"]}) as server:
        first, _ = await deliver(server, tmp_path, plugins=sets(recipients=recipients))
        second, _ = await deliver(server, tmp_path, plugins=sets(recipients=recipients))
        third, _ = await deliver(server, tmp_path, plugins=sets(recipients=recipients))
        assert [to for _, to, _ in server.mails] == [["yes@example.org"], ["no@example.org"]]
    assert counts(first) == {"rejected": 1}
    assert counts(second) == {"continued": 1}
    assert counts(third) == {"present": 1}


# A second run


@run
async def test_a_second_run_sends_what_is_new(tmp_path):
    async with next_server({"mailfrom": ["550 5.0.0 no"]}) as server:
        first, _ = await deliver(server, tmp_path, MANY[:5], max_in_flight=1)
        second, _ = await deliver(server, tmp_path, MANY[:7])
        third, _ = await deliver(server, tmp_path, MANY[:7])
        assert len(server.mails) == 7
    assert counts(first) == {"continued": 4, "rejected": 1}
    assert counts(second) == {"present": 4, "continued": 3}
    assert counts(third) == {"present": 7}


@run
async def test_a_record_that_cannot_be_written(tmp_path, monkeypatch):
    """What was on its way is delivered, which the next run does not know."""

    async def note(sink, mails, partly):
        raise SinkError("the disk is full")

    monkeypatch.setattr(SmtpSink, "note", note)
    async with next_server() as server:
        report, _ = await deliver(server, tmp_path, MANY)
        assert report.counts.in_doubt == len(server.mails) > 0
    assert (report.error, report.counts.unfinished) == ("the disk is full", 100)


@run
async def test_a_record_that_cannot_be_written_for_a_part_of_the_recipients(tmp_path, monkeypatch):
    async def note(sink, mails, partly):
        assert list(partly.values()) == [["yes@example.org"]]
        raise SinkError("the disk is full")

    monkeypatch.setattr(SmtpSink, "note", note)
    async with next_server({"no@example.org": ["550 5.1.1 no"]}) as server:
        report, _ = await deliver(server, tmp_path, plugins=sets(recipients=["yes@example.org", "no@example.org"]))
    assert counts(report) == {"unfinished": 1, "in_doubt": 1}


@run
async def test_the_loop_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    threads = []

    def fsync(fd):
        threads.append(threading.current_thread())

    async with next_server({"no@example.org": ["550 5.1.1 no"]}) as server:
        sink = SmtpSink(f"//127.0.0.1:{server.port}", source=tmp_path / "mbox")
        monkeypatch.setattr(os, "fsync", fsync)
        recipients = ["yes@example.org", "no@example.org"]
        await deliver(server, tmp_path, plugins=sets(recipients=recipients), sink=sink)
    assert threads and threading.main_thread() not in threads


@run
async def test_failed_mails_that_cannot_be_put_aside_do_not_take_others_out_of_the_record(tmp_path):
    """What is delivered is noted all the same, also to whom of several."""
    script = {"no@example.org": ["550 5.1.1 no"]}

    def hook(context, message):
        message.recipients = ["yes@example.org", "no@example.org"] if message.mime == MANY[0] else ["b@example.org"]

    plugins = {"10-to": SimpleNamespace(mq_smtp_in_message=hook)}
    async with next_server(script) as server:
        async with delivering(server, tmp_path, MANY[:20], plugins) as it:
            it.failed.error = "no space"
            first = await it.end()
        assert (first.error, first.counts.in_doubt) == ("no space", 0)
        await deliver(server, tmp_path, MANY[:20], plugins)
        assert sorted(to for _, to, _ in server.mails) == sorted(
            [["yes@example.org"], ["no@example.org"], *[["b@example.org"]] * 19]
        )


# No server


@pytest.mark.parametrize("script", [{"greeting": ["450 4.3.2 busy"]}, {"greeting": [DROP]}, {"ehlo": ["421 4.3.2 busy"]}])
@run
async def test_a_server_that_is_busy(tmp_path, script, caplog):
    async with next_server({stage: answers * 3 for stage, answers in script.items()}) as server:
        report, _ = await deliver(server, tmp_path, MANY[:5], max_in_flight=1)
        assert len(server.mails) == 5
    assert counts(report) == {"continued": 5}
    assert "trying again" in caplog.text


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("more_after", [3600.0, 0.01])
@run
async def test_a_server_that_takes_few_connections(tmp_path, limit, more_after, monkeypatch):
    """Those that it takes do, and it is not asked all the time for more."""
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (3600.0,))
    monkeypatch.setattr("mqcore.mail.smtp.pool.MORE_AFTER", more_after)
    async with next_server() as server:
        server.max_open = limit
        report, _ = await deliver(server, tmp_path, MANY)
        assert len(server.mails) == 100
        if more_after > 1:
            assert server.connections <= MAX_CONNECTIONS + limit
    assert counts(report) == {"continued": 100}


@run
async def test_a_server_that_does_not_come_back(tmp_path, caplog):
    """What it has not got stays where it is, and is not taken for mails that failed."""
    async with next_server() as server:
        await server.stop()
        report, failed = await deliver(server, tmp_path, MANY)
        await server.start()
    assert report.error == f"cannot reach smtp://127.0.0.1:{server.port}: Connection refused"
    assert report.exit_code == 4
    assert counts(report) == {"unfinished": 100}
    assert failed.mails == []
    assert caplog.text.count("Connection refused; trying again in 0.001 s") == 3


@run
async def test_a_server_that_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (0.01,) * 1000)
    async with next_server() as server:
        await server.stop()
        async with delivering(server, tmp_path, MANY) as it:
            await it.until(lambda: it.gateway.report.counts.read == 100)
            await server.start()
            report = await it.end()
        assert len(server.mails) == 100
    assert counts(report) == {"continued": 100}


@pytest.mark.parametrize("answers", [["454 4.7.0 no TLS now"], ["220 go ahead"]])
@run
async def test_starttls_that_does_not_come_about(tmp_path, answers, caplog):
    """The mail is not sent in the clear instead."""
    async with next_server({"starttls": answers}) as server:
        server.extensions = ["STARTTLS"]
        async with delivering(server, tmp_path) as it:
            await it.until(lambda: "trying again" in caplog.text)
            assert server.commands[:2] == [server.commands[0], "STARTTLS"] and server.mails == []
            server.extensions = []
            report = await it.end()
        assert len(server.mails) == 1
    assert counts(report) == {"continued": 1}


@run
async def test_a_server_that_does_not_want_us(tmp_path):
    async with next_server({"greeting": ["554 5.7.1 no"] * 100}) as server:
        report, _ = await deliver(server, tmp_path, MANY)
        assert server.connections <= MAX_CONNECTIONS
    assert report.error == f"cannot reach smtp://127.0.0.1:{server.port}: it says 554 5.7.1 no"
    assert counts(report) == {"unfinished": 100}


# Plugins


@run
async def test_hooks_before_and_after(tmp_path):
    seen = []

    async def make(context, message):
        await asyncio.sleep(0)
        message.mime = b"X-Out: 1\n" + message.mime
        message.envelope = "new@example.org"
        message.recipient = "c@example.org"

    def sent(context, message):
        seen.append((message.mime, message.json["results"]))
        message.reject(550, "too late")
        raise ValueError("too late")

    plugins = {"10-out": SimpleNamespace(mq_smtp_out_data=make, mq_smtp_out_sent=sent)}
    async with next_server({"mailfrom": ["450 4.0.0 once more"]}) as server:
        report, _ = await deliver(server, tmp_path, plugins=plugins, recipient=None)
        assert server.mails == [("new@example.org", ["c@example.org"], b"X-Out: 1\r\n" + WIRE)]
    result = {"recipient": "c@example.org", "state": "message", "code": 250, "description": "2.0.0 queued"}
    assert seen == [(b"X-Out: 1\n" + TEXT, [result])]
    assert counts(report) == {"continued": 1}


@run
async def test_a_plugin_that_refuses_or_fails_what_goes_out(tmp_path):
    def hook(context, message):
        if message.mime == MANY[0]:
            message.reject(550, "5.7.0 no")
        if message.mime == MANY[1]:
            raise ValueError("a bug")

    async with next_server() as server:
        report, _ = await deliver(server, tmp_path, MANY[:3], {"10-no": SimpleNamespace(mq_smtp_out_data=hook)})
        assert len(server.mails) == 1
    assert counts(report) == {"continued": 1, "rejected": 1, "failed": 1}
    assert "results" not in reasons(tmp_path)[0]


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"recipient": None}, 550, "5.1.3 it is not known to whom to send this; "),
        ({"envelope": None}, 550, "5.1.7 it is not known from whom this is; "),
        ({"recipient": "a> SIZE=1"}, 553, "5.1.3 this is no address: 'a> SIZE=1'"),
        ({"recipients": ["b@example.org", ""]}, 553, "5.1.3 this is no address: ''"),
        ({"json": {"envelope": "", "recipients": "b@example.org"}}, 550, "5.1.0 what a plugin left"),
        ({"json": {"envelope": "", "recipients": [5]}}, 553, "5.1.3 this is no address: 5"),
        ({"json": {"envelope": 5, "recipient": "b@example.org"}}, 550, "5.1.7 it is not known from whom this is"),
        ({"envelope": "\udcff@example.org"}, 553, r"5.1.3 this is no address: '\udcff@example.org'"),
    ],
)
@run
async def test_what_cannot_be_sent(tmp_path, fields, code, text):
    async with next_server() as server:
        report, _ = await deliver(server, tmp_path, plugins=sets(**fields))
        assert server.connections == 0
    assert counts(report) == {"rejected": 1}
    rejection = reasons(tmp_path)[0]["rejected"]
    assert rejection["code"] == code and rejection["text"].startswith(text)


# The end of a run


@run
async def test_stopped_while_a_plugin_holds_what_goes_out(tmp_path):
    held = []

    def hold(context, message):
        held.append(message)
        return True

    async with next_server() as server:
        async with delivering(server, tmp_path, MANY, {"10-hold": SimpleNamespace(mq_smtp_out_data=hold)}) as it:
            await it.until(lambda: len(held) == 100)
            it.gateway.stop()
            report = await it.end()
        assert server.connections == 0
    assert counts(report) == {"unfinished": 100}


@run
async def test_stopped_while_mails_wait_to_be_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (3600.0,))
    script = {"mailfrom": ["450 4.0.0 later"] * 50}
    async with next_server(script) as server:
        async with delivering(server, tmp_path, MANY) as it:
            await it.until(lambda: len(server.mails) == 50)
            it.gateway.stop()
            report = await it.end()
        assert counts(report) == {"continued": 50, "unfinished": 50}
        report, _ = await deliver(server, tmp_path, MANY)
        assert len(server.mails) == 100
    assert counts(report) == {"present": 50, "continued": 50}


@pytest.mark.parametrize("stage", STAGES)
@run
async def test_stopped_within_a_transaction_it_is_finished(tmp_path, stage):
    async with next_server({stage: [SILENCE]}) as server, delivering(server, tmp_path, MANY[:3], max_in_flight=1) as it:
        await server.silent.wait()
        it.gateway.stop()
        await asyncio.sleep(0.01)
        assert not it.running.done()
        server.speak.set()
        report = await it.end()
    assert counts(report)["continued"] == 1


@pytest.mark.parametrize("stage", STAGES)
@run
async def test_stopped_within_a_transaction_that_takes_too_long(tmp_path, stage, monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.05)
    async with next_server({stage: [SILENCE]}) as server:
        async with delivering(server, tmp_path) as it:
            await server.silent.wait()
            it.gateway.stop()
            report = await it.end()
        assert server.mails == []
    assert counts(report) == {"unfinished": 1} | ({"in_doubt": 1} if stage == "message" else {})
