"""Wrong usage is told with what was most likely meant."""

from __future__ import annotations

import errno
import os
import re
import ssl

import pytest

from mqcore.cli import parser
from mqcore.cli.plugins import load, tell_what_is_missing
from mqcore.mail import SmtpSource
from mqcore.mail.errors import SinkError, speaks_no_tls
from mqcore.mail.listening import explain
from mqcore.mail.mbox.format import find_fault
from mqcore.mail.mbox.sink import MboxSink
from mqcore.mail.places import parse_sink, parse_source


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        parser(arguments[0] if arguments else None).parse_args(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "mqcore: error: the following arguments are required: COMMAND; mqcore --help lists them"),
        (["rn"], "; did you mean run?"),
        (["run", "--form", "mbox:x"], "mqcore run: error: unrecognized arguments: --form mbox:x; did you mean --from?"),
        (["run", "--log-levle=info"], "unrecognized arguments: --log-levle=info; did you mean --log-level?"),
        (["run", "--from", "mbox:x", "plugins"], "unrecognized arguments: plugins; did you mean --plugins plugins?"),
        (["run", "--from", "mbox:x", "nothing"], "unrecognized arguments: nothing\n"),
        (["order", "plugins"], "mqcore order: error: unrecognized arguments: plugins; did you mean --plugins plugins?"),
        (["try", "plugins", "x", "--stage", "mq_smtp_in_mesage"], "; did you mean mq_smtp_in_message?"),
        (["ctl", "relod"], "; did you mean reload?"),
        (["ctl", "held", "--plugn", "x"], "mqcore ctl held: error: unrecognized arguments: --plugn x; did you mean --plugin?"),
    ],
)
def test_the_command_line(tmp_path, monkeypatch, capsys, arguments, said):
    (tmp_path / "plugins").mkdir()
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["plugins", "--stage", "all", "mail.eml"],
        ["--stage", "all", "plugins", "mail.eml"],
        ["plugins", "mail.eml", "--stage", "all"],
    ],
)
def test_options_may_stand_between_the_others(arguments):
    options = parser("try").parse_args(["try", *arguments])
    assert (options.paths, options.mail, options.stage) == (["plugins"], "mail.eml", "all")


@pytest.mark.parametrize(
    ("parse", "url", "said"),
    [
        (parse_sink, "nul:", "'nul:' is no sink; did you mean null:?"),
        (parse_source, "MBOX:mail", "'MBOX:mail' is no source; did you mean mbox:mail?"),
        (parse_source, "mbx:mail", "did you mean mbox:mail?"),
        (parse_source, "box", "'box' is no source; did you mean mbox:box?"),
        (parse_source, "folder", "'folder' is no source; did you mean maildir:folder?"),
        (parse_source, "127.0.0.1:2525", "'127.0.0.1:2525' is no source; did you mean smtp://127.0.0.1:2525?"),
        (parse_source, "smtp//127.0.0.1:2525", "did you mean smtp://127.0.0.1:2525?"),
        (parse_source, "smtp:127.0.0.1:2525", "'127.0.0.1:2525' is not //HOST:PORT; did you mean smtp://127.0.0.1:2525?"),
        (parse_source, "smtp://127.0.0.1", "'//127.0.0.1' is not //HOST:PORT; did you mean smtp://127.0.0.1:25?"),
        (parse_source, "milter:127.0.0.1:10025", "did you mean milter://127.0.0.1:10025?"),
        (parse_source, "milter:inet:10025@localhost", "did you mean milter://localhost:10025?"),
        (parse_source, "imap:x", "'imap:x' is no source; it can be mbox:PATH or "),
    ],
)
def test_urls(tmp_path, monkeypatch, parse, url, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "box").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(url)


@pytest.mark.parametrize("scheme", ["mbox", "maildir"])
def test_two_slashes_make_no_folder_of_the_root(scheme):
    with pytest.raises(ValueError, match=f"with none, as {scheme}:in, or, from the root on, with one, as {scheme}:/in"):
        parse_sink(f"{scheme}://in")
    assert parse_sink(f"{scheme}:///in").path == parse_sink(f"{scheme}:/in").path == "/in"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("//127.0.0.1?que=a", "'que' is no parameter"),
        ("//127.0.0.1/", "which queue? write it as ?queue=NAME"),
        ("//user:sec/ret@127.0.0.1/?queue=a", "write / as %2F"),
        ("//user:sec#ret@127.0.0.1/?queue=a", "# as %23"),
    ],
)
def test_urls_of_a_broker(path, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        parse_source(f"amqp:{path}")
    assert "ret@" not in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(SinkError, match=f"No such file or directory; make the folder {tmp_path}/no first"):
        MboxSink(f"{tmp_path}/no/mails")


def test_where_nothing_can_listen(tmp_path):
    (tmp_path / "file").touch()
    in_use, missing = (OSError(code, os.strerror(code)) for code in (errno.EADDRINUSE, errno.ENOENT))
    assert explain(in_use, 25) == "Address already in use; another program has this port"
    assert explain(in_use, f"{tmp_path}/socket") == "Address already in use; another program has this path"
    assert "; there is a file, and no socket: choose another path, or take it away" in explain(in_use, f"{tmp_path}/file")
    assert explain(missing, f"{tmp_path}/no/socket") == f"No such file or directory; make the folder {tmp_path}/no first"


def test_a_source_is_given_what_stands_behind_the_scheme():
    with pytest.raises(ValueError, match="'smtp://127.0.0.1:0' is not //HOST:PORT"):
        SmtpSource("smtp://127.0.0.1:0")


def test_a_single_mail_is_no_mbox():
    assert str(find_fault(b"Subject: hello\n\n")).endswith("by `mqcore try`, or put it into new/ of a Maildir")
    assert str(find_fault(b"PK\x03\x04")).endswith("name another file")


def test_a_port_without_tls():
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ours, theirs, server_hostname="mx.example.org")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    ours.write(b"220 mx.example.org ESMTP\r\n")
    with pytest.raises(ssl.SSLError) as error:
        client.do_handshake()
    assert "there is no TLS at that port" in speaks_no_tls(error.value)
    assert speaks_no_tls(ConnectionRefusedError()) == ""


def missing(tmp_path, capsys, config=""):
    """What is said of a folder of plugins, and of a file."""
    (tmp_path / "mqcore.toml").write_text(config)
    arguments = ["check", "--trust-writable", "--config", f"{tmp_path}/mqcore.toml", f"{tmp_path}/plugins"]
    options = parser("check").parse_args(arguments)
    with load(options, *options.paths) as plugins:
        tell_what_is_missing(options, plugins, options.paths)
    return capsys.readouterr().err


def test_a_folder_without_plugins_that_has_what_may_be_one(tmp_path, capsys):
    (tmp_path / "plugins" / "10-a").mkdir(parents=True)
    (tmp_path / "plugins" / "10-a" / "10-a.py").touch()
    for name in ("20-b.PY", "_30-c.py", "README"):
        (tmp_path / "plugins" / name).touch()
    assert missing(tmp_path, capsys) == (
        "mqcore: there are no plugins; 10-a has no __init__.py; 20-b.PY does not end in .py or .so; _30-c.py begins with _\n"
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[plugin.10-a]\nx = 1\n", "mqcore.toml:1 has plugin, and there is no plugin of that name; write [plugins.NAME]\n"),
        ("[Run]\nlog-level = 'info'\n", "mqcore.toml:1 has Run, and there is no plugin of that name; did you mean [run]?\n"),
        ("[plugins]\n[10-a]\nx = 1\n", "mqcore.toml:2 has [10-a], which nothing reads; write [plugins.10-a]\n"),
        ("[10-a]\nx = 1\n", ""),
    ],
)
def test_tables_that_nothing_reads(tmp_path, capsys, config, said):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "10-a.py").write_text("def mq_smtp_in_message(context, message): pass\n")
    assert missing(tmp_path, capsys, config) == (f"mqcore: {tmp_path}/{said}" if said else "")


def test_a_plugin_that_changes_the_working_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "10-a.py").write_text("import os\nos.chdir('/')\n")
    (tmp_path / "mqcore.toml").write_text("[plugins.10-b]\nx = 1\n")
    monkeypatch.chdir(tmp_path)
    options = parser("check").parse_args(["check", "--trust-writable", "--config", "mqcore.toml", "plugins"])
    with load(options, *options.paths) as plugins:
        tell_what_is_missing(options, plugins, options.paths)
    said = "mqcore.toml:1 has 10-b, and there is no plugin of that name; did you mean 10-a?"
    assert capsys.readouterr().err == f"mqcore: {said}\n"
