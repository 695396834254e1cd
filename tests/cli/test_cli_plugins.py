"""Plugins from the command: what is said of them, what they print, and where they lead."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
from mail_tools import counted, move, read_maildir, run, write_mbox, write_plugin

from mqcore.cli.hooks import read_hooks

PASS = "def mq_smtp_in_message(context, message): pass\n"


@pytest.fixture
def package(tmp_path):
    """An installed package that offers a plugin."""
    site = tmp_path / "site"
    info = site / "offered-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "offered.py").write_text(PASS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mqcore.plugins]\n50-offered = offered\n")
    sys.path.append(str(site))  # which `run` hands on
    yield
    sys.path.remove(str(site))


@pytest.mark.usefixtures("package")
def test_plugins_of_installed_packages(tmp_path):
    plugins = write_plugin(tmp_path / "plugins", "10-a", PASS).parent
    result = run("order", "--plugins", plugins, "--entry-points")
    assert result.stdout == f"mq_smtp_in_message\n    10-a  ({plugins}/10-a.py)\n    50-offered  (an entry point)\n"
    result = run("check", "--entry-points")
    assert (result.stdout, result.stderr, result.returncode) == ("50-offered: mq_smtp_in_message\n", "", 0)
    figures = move(f"mbox:{write_mbox(tmp_path / 'box', 2)}", "null:", "--entry-points")
    assert [hook["plugin"] for hook in figures["plugins"]] == ["50-offered"]


def test_no_plugins_at_all(tmp_path):
    box, empty = write_mbox(tmp_path / "box", 2), tmp_path / "empty"
    empty.mkdir()
    result = run("run", "--from", f"mbox:{box}", "--to", "null:")
    assert (result.stderr, result.returncode) == ("mqcore: there are no plugins\n", 0)
    result = run("run", "--from", f"mbox:{box}", "--to", "null:", "--plugins", empty)
    assert (result.stderr, result.returncode) == ("mqcore: there are no plugins\n", 0)
    one = write_plugin(tmp_path / "plugins", "10-a", PASS)
    for command in (["run", "--from", f"mbox:{box}", "--to", "null:"], ["order"]):
        result = run(*command, "--plugins", one, "--plugins", empty)
        assert (result.stderr, result.returncode) == (f"mqcore: there are no plugins in {empty}\n", 0)
    result = run("check", empty)
    assert (result.stderr, result.returncode) == ("mqcore: there are no plugins\n", 0)
    result = run("check")
    assert result.returncode == 2 and "which plugins? Give paths, or --entry-points" in result.stderr


def test_names_that_are_misspelt(tmp_path):
    plugins = write_plugin(tmp_path / "plugins", "10-greylist", PASS).parent
    config = tmp_path / "mqcore.toml"
    config.write_text('[plugins."10-greylist"]\nhold_timout = 5\nhold = 3\n[plugins."10-graylist"]\n[plugins.other]\n[run]\n')
    expected = {
        "WARNING mqcore: plugin 10-greylist: its config has hold_timout; did you mean hold_timeout?",
        f"mqcore: {config}:4 has 10-graylist, and there is no plugin of that name; did you mean 10-greylist?",
        f"mqcore: {config}:5 has other, and there is no plugin of that name; load it, or take its table away",
    }
    for command in (
        ["run", "--from", f"mbox:{write_mbox(tmp_path / 'box', 1)}", "--to", "null:", "--plugins", plugins],
        ["order", "--plugins", plugins],
        ["check", plugins],
    ):
        result = run(*command, "--config", config)
        lines = {line[25:] if " WARNING " in line else line for line in result.stderr.splitlines()}  # without the time
        assert (lines, result.returncode) == (expected, 0)


def test_check_begins_contexts(tmp_path):
    plugins = tmp_path / "plugins"
    write_plugin(plugins, "10-good", PASS + "def mq_context_initialize(context): context.data['x'] = 1\n")
    for name in ("20-bad", "30-bad"):
        write_plugin(plugins, name, PASS + "def mq_context_initialize(context):\n    raise OSError('no database')\n")
    result = run("check", plugins)
    assert (result.stdout, result.returncode) == ("10-good: mq_smtp_in_message\n", 3)
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and "20-bad" in lines[0] and "30-bad" in lines[1] and "no database" in lines[0]


def test_check_says_all_that_is_wrong(tmp_path):
    good = write_plugin(tmp_path / "plugins", "10-good", PASS)
    bad = write_plugin(tmp_path / "more", "20-bad", "1 / 0")
    result = run("check", bad, good)
    assert (result.stdout, result.returncode) == ("10-good: mq_smtp_in_message\n", 3)
    assert len(result.stderr.splitlines()) == 1 and "20-bad" in result.stderr


PRINTS = """
    import os
    import subprocess

    print("import")

    def mq_initialize(): print("initialize")
    def mq_context_initialize(context): print("context")
    def mq_context_cleanup(context): print("context ends")
    def mq_cleanup(): print("cleanup")

    def mq_smtp_in_message(context, message):
        print("hook")
        os.write(1, b"write\\n")
        subprocess.run(["echo", "process"])
"""


def test_what_plugins_print_goes_to_standard_error(tmp_path):
    plugins = write_plugin(tmp_path / "plugins", "10-print", PRINTS).parent
    box = write_mbox(tmp_path / "box", 1)
    result = run("run", "--from", f"mbox:{box}", "--to", "null:", "--plugins", plugins, "--json")
    assert json.loads(result.stdout)["messages"]["read"] == 1
    said = ["import", "initialize", "context", "hook", "write", "process", "context ends", "cleanup"]
    assert (result.stderr.split("\n"), result.returncode) == ([*said, ""], 0)
    result = run("check", plugins)
    assert (result.stdout, result.returncode) == ("10-print: mq_smtp_in_message\n", 0)
    lines = result.stderr.splitlines()
    (warning,) = [line for line in lines if line.startswith("mqcore: ")]
    assert f"{plugins}/10-print.py:15: plugin 10-print: warning: mq_smtp_in_message calls subprocess.run" in warning
    lines.remove(warning)
    assert lines == ["import", "initialize", "context", "context ends", "cleanup"]
    result = run("order", "--plugins", plugins)
    assert result.stdout == f"mq_smtp_in_message\n    10-print  ({plugins}/10-print.py)\n"
    assert result.stderr.split() == ["import", "initialize", "cleanup"]


def test_a_plugin_that_changes_the_current_directory(tmp_path):
    """Places are where they were said to be."""
    (tmp_path / "elsewhere").mkdir()
    write_plugin(tmp_path / "plugins", "10-go", f"import os\nos.chdir({str(tmp_path / 'elsewhere')!r})\n" + """
        def mq_smtp_in_message(context, message):
            if message.envelope == "sender0@example.org":
                message.reject(550, "no")
    """.replace("\n        ", "\n"))
    write_mbox(tmp_path / "box", 3)
    places = ("--from", "mbox:box", "--to", "maildir:out", "--failed", "mbox:failed")
    result = run("run", *places, "--plugins", "plugins", "--json", cwd=tmp_path)
    assert counted(json.loads(result.stdout)) == {"continued": 2, "rejected": 1}
    assert len(read_maildir(tmp_path / "out")) == 2
    assert (tmp_path / "failed").read_bytes() and not os.listdir(tmp_path / "elsewhere")


def test_no_line_on_standard_error_can_be_forged(tmp_path):
    """By what a plugin says of a client's words."""
    forged = "mail\\nWARNING mqcore: all is well\\r\\x1b[2J\\u202e"
    plugins = write_plugin(tmp_path / "plugins", "10-say", f"""
        def mq_smtp_in_message(context, message):
            context.log.warning("{forged}")
            raise ValueError("{forged}")
    """).parent
    result = run("run", "--from", f"mbox:{write_mbox(tmp_path / 'box', 1)}", "--to", "null:", "--plugins", plugins)
    lines = result.stderr.split("\n")
    begin = [line[25:].split(":")[0] for line in lines if not line.startswith("  ")]
    assert begin == ["WARNING mqcore.plugins.10-say", "ERROR mqcore.plugins.10-say", "INFO mqcore.mail.refused", ""]
    assert "".join(lines).isprintable()
    assert lines[1] == r"  WARNING mqcore: all is well\r\x1b[2J\u202e"


OWN_HOOKS = """
from mqcore import HookSpec
print("import")
UPLOAD = HookSpec("on_upload", "folder")
HOOKS = [UPLOAD]
OTHER = 5
"""


def test_hooks_of_a_program_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_hooks.py").write_text(OWN_HOOKS)
    plugin = write_plugin(tmp_path / "plugins", "10-a", "def on_upload(context, message, folder): return False\n")
    for hooks in ("my_own_hooks:HOOKS", "my_own_hooks:UPLOAD"):
        result = run("check", "--hooks", hooks, plugin)
        assert (result.stdout, result.stderr, result.returncode) == ("10-a: on_upload\n", "import\n", 0)
    result = run("order", "--hooks", "my_own_hooks:HOOKS", "--plugins", plugin)
    assert (result.stdout, result.returncode) == (f"on_upload\n    10-a  ({plugin})\n", 0)
    (tmp_path / "mail").write_text("Subject: hello\n\nhello\n")
    result = run("try", "--hooks", "my_own_hooks:HOOKS", plugin, tmp_path / "mail")
    told = "mqcore: on_upload of 10-a is not run, as it is no stage of a mail; test it with the fixture mq, as "
    assert (result.stderr, result.returncode) == (f"import\n{told}mq.run('on_upload', message)\n", 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("my_own_hooks", "'my_own_hooks' is no MODULE:NAME"),
        ("my_own_hooks:OTHER", "my_own_hooks:OTHER is no HookSpec, and no list of them, but 5"),
        ("my_own_hooks:NONE", "my_own_hooks:NONE cannot be had: AttributeError: module 'my_own_hooks' has no attribute 'NONE'"),
        ("not_there:HOOKS", "not_there:HOOKS cannot be had: ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_hooks_that_are_none(tmp_path, monkeypatch, text, said):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_own_hooks.py").write_text(OWN_HOOKS)
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        read_hooks(text)
    sys.modules.pop("my_own_hooks", None)
