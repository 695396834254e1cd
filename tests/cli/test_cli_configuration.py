"""Options of `mqcore run` from the command line, the environment and the file; `mqcore config` and `mqcore check --config`."""

from __future__ import annotations

import json
import os

import pytest
from mail_tools import counted, run, write_mbox, write_plugin


def settings(*arguments: object, **environment: str) -> dict[str, str]:
    """What `mqcore config` prints: name to value and origin."""
    result = run("config", *arguments, env=os.environ | environment)
    assert (result.returncode, result.stderr) == (0, "")
    head, *lines = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    assert head == "[run]"
    return dict(line.split(" = ", 1) for line in lines)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path):
    config = tmp_path / "mqcore.toml"
    config.write_text('[run]\nfrom = "mbox:box"\nto = "null:"\n\nmax-in-flight = 1\nmax-recipients = 1\nmax-loops = 1\n')
    found = settings(
        "--max-in-flight", 3, MQCORE_CONFIG=str(config), MQCORE_MAX_IN_FLIGHT="2", MQCORE_MAX_RECIPIENTS="2"
    )
    assert found["from"] == f'"mbox:box"  # {config}:2'
    assert found["max-in-flight"] == "3  # command line"
    assert found["max-recipients"] == '"2"  # MQCORE_MAX_RECIPIENTS'
    assert found["max-loops"] == f"1  # {config}:7"
    assert found["watchdog"] == '"500ms"  # default'


def test_all_of_a_run_in_the_file(tmp_path):
    """The places and the plugins, too; and options that are there or not, lists, and times."""
    plugins = write_plugin(tmp_path / "plugins", "10-go", "def mq_smtp_in_message(context, message): return False\n").parent
    config = tmp_path / "mqcore.toml"
    config.write_text(
        f'[run]\nfrom = "mbox:{write_mbox(tmp_path / "box", 3)}"\nto = "null:"\nplugins = ["{plugins}"]\njson = true\n'
        'watchdog = 0.25\nlog-format = "json"\ntrust-writable = false\nno-trace = true\n'
    )
    result = run("run", "--config", config)
    assert (result.stderr, result.returncode) == ("", 0)
    figures = json.loads(result.stdout)
    assert counted(figures) == {"continued": 3}
    assert [row["plugin"] for row in figures["plugins"]] == ["10-go"]


def test_all_of_a_run_in_the_environment(tmp_path):
    """Options for places that are not there are left alone: a variable may be for several runs."""
    names = {"FROM": f"mbox:{write_mbox(tmp_path / 'box', 3)}", "TO": "null:", "JSON": "1", "REQUIRE_TLS": "yes"}
    environment = {f"MQCORE_{name}": value for name, value in names.items()}
    result = run("run", env=os.environ | environment)
    assert counted(json.loads(result.stdout)) == {"continued": 3}
    environment["MQCORE_JSON"] = "0"
    assert not run("run", env=os.environ | environment).stdout.startswith("{")


def test_no_password_is_printed(tmp_path):
    """Not that there may be one in a URL: it is in what was written, right or wrong."""
    config = tmp_path / "mqcore.toml"
    config.write_text('[run]\nfrom = "mbox:box"\nto = "null:"\nproxy-from = "//joe:secret@example.org"\n')
    assert "secret" not in str(settings("--config", config))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[plugins.x]\nmax-loops = 1\n[run]\n\nmax-loop = 3", ":5: [run] has max-loop, which is no option that it may have"),
        ("[run]\nmax-loops = 'x'", ":2: max-loops in [run] is a whole number above 0, not 'x'"),
        ("[run]\n# a comment\nto = 'maildr:x'", ":3: to in [run]: 'maildr:x' is no sink; did you mean maildir:x?"),
        ("[run]\nwatchdog = 'soon'", ":2: watchdog in [run]: 'soon' is no duration; write 500ms, 10s, 5m or 2h"),
        ("[run]\nplugins = [1]", ":2: plugins in [run] is a text, or a list of them, not [1]"),
        ("[run]\nlog-format = 'xml'", ":2: log-format in [run] is one of text, json, not 'xml'"),
        ("[run]\njson = 1", ":2: json in [run] is true or false, not 1"),
        ("run.max-loops = 0", ":1: max-loops in [run] is a whole number above 0, not 0"),
        ("[run]  # comment\n\nmax-loops = 'x'", ":3: max-loops in [run] is a whole number above 0, not 'x'"),
        ("[ run ]\n\"max-loops\" = 'x'", ":2: max-loops in [run] is a whole number above 0, not 'x'"),
        ("run = {max-loops = 'x'}", ":1: max-loops in [run] is a whole number above 0, not 'x'"),
        ("[run]\nplugins = [\n'a',\n1]\njson = true", ":2: plugins in [run] is a text, or a list of them, not ['a', 1]"),
        ("[run]\ntrace = 2", ":2: trace in [run]: '2' is no number from 0 to 1"),
        ("run = 1", ":1: run is a table of options, not 1; write [run]"),
    ],
)
def test_what_is_wrong_in_the_file(tmp_path, text, said):
    config = tmp_path / "mqcore.toml"
    config.write_text(text)
    for command in (["check"], ["run", "--from", "mbox:x", "--to", "null:"], ["config"]):
        if command != ["check"] and "to in [run]" in said:
            continue  # there the command line wins
        result = run(*command, "--config", config)
        assert result.returncode == 2 and f"{config}{said}" in result.stderr


def test_check_reads_the_file_also_for_plugins_that_are_given(tmp_path):
    plugins = write_plugin(tmp_path / "plugins", "10-go", "def mq_smtp_in_message(context, message): return False\n").parent
    config = tmp_path / "mqcore.toml"
    config.write_text("[run]\nhostnam = 'x'\n")
    result = run("check", "--config", config, plugins)
    assert result.returncode == 2 and f"{config}:2: [run] has hostnam" in result.stderr


def test_toml_that_is_none(tmp_path):
    config = tmp_path / "mqcore.toml"
    config.write_text("[run]\nmax-loops = \n")
    result = run("check", "--config", config)
    assert result.returncode == 3 and f"{config}:2" in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MQCORE_MAX_LOOPS", "many", "MQCORE_MAX_LOOPS: 'many' is no whole number above 0"),
        ("MQCORE_JSON", "maybe", "MQCORE_JSON is 1 or 0, not 'maybe'"),
        ("MQCORE_LOG_FORMAT", "xml", "MQCORE_LOG_FORMAT is one of text, json, not 'xml'"),
        ("MQCORE_TO", "maildr:x", "MQCORE_TO: 'maildr:x' is no sink; did you mean maildir:x?"),
    ],
)
def test_what_is_wrong_in_the_environment(variable, value, said):
    result = run("run", "--from", "mbox:x", env=os.environ | {variable: value})
    assert result.returncode == 2 and said in result.stderr


def test_a_variable_that_is_misspelt(tmp_path):
    places = ("--from", f"mbox:{write_mbox(tmp_path / 'box', 1)}", "--to", "null:")
    result = run("run", *places, env=os.environ | {"MQCORE_MAX_INFLIGHT": "3", "MQCORE_SOMETHING_ELSE": "1"})
    assert result.stderr.startswith("mqcore: MQCORE_MAX_INFLIGHT is no option; did you mean MQCORE_MAX_IN_FLIGHT?\n")
    assert "SOMETHING" not in result.stderr


def test_check_loads_the_plugins_that_the_file_names(tmp_path):
    plugins = write_plugin(tmp_path / "plugins", "10-go", "def mq_smtp_in_message(context, message): return False\n").parent
    config = tmp_path / "mqcore.toml"
    config.write_text(f'[run]\nplugins = "{plugins}"\n')
    assert run("check", "--config", config).stdout == "10-go: mq_smtp_in_message\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[plugins."10-go"]\n\nhold_timeout = "long"', ":3: plugin 10-go: hold_timeout in its config must be"),
        ('[plugins."10-go"]\na = 1\non_error = "fall"', ':3: plugin 10-go: on_error in its config must be "fail"'),
        ("[plugins]\n# one\n'10-go' = 3", ":3: plugin 10-go: its config must be a table, and is 3"),
        ("['10-go']  # at the top\non_error = 1", ":2: plugin 10-go: on_error in its config"),
        ("plugins = 3", ":1: plugins must be a table of tables, one for each plugin, and is 3"),
    ],
)
def test_what_is_wrong_in_a_plugins_table(tmp_path, text, said):
    plugins = write_plugin(tmp_path / "plugins", "10-go", "def mq_smtp_in_message(context, message): return False\n").parent
    config = tmp_path / "mqcore.toml"
    config.write_text(text)
    result = run("check", "--config", config, plugins)
    assert (result.returncode, result.stderr.startswith(f"mqcore: {config}{said}")) == (3, True), result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("from = 'smtp://:25'\nto = 'null:'\n\nrequire-tls = true", ":5: --require-tls needs --tls-certificate"),
        ("from = 'smtp://:25'\nrequire-tls = true", ":3: --require-tls needs --tls-certificate"),
        ("watchdog = 0\nwatchdog-abort = '60s'", ":3: --watchdog-abort needs the watchdog"),
        ("from = 'mbox:/a'\nto = 'mbox:/a'", ":3: mbox:/a and mbox:/a are the same mailbox"),
        ("to = 'smtp://:1'\nfrom = 'smtp://:2'\nmax-loops = 1", ":2: smtp://:1 may take a mail for some of its"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, text, said):
    """As a run would tell."""
    config = tmp_path / "mqcore.toml"
    config.write_text(f"[run]\n{text}\n")
    result = run("check", "--config", config)
    assert result.returncode == 2 and f"{config}{said}" in result.stderr, result.stderr


def test_a_file_for_several_runs_is_right(tmp_path):
    """Without source and sink, and with options of places that are not there."""
    config = tmp_path / "mqcore.toml"
    config.write_text("[run]\nto = 'null:'\nrequire-tls = true\nmax-loops = 3\n")
    result = run("check", "--config", config)
    assert (result.returncode, result.stderr) == (0, "mqcore: there are no plugins\n")
