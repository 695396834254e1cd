"""Every block of code in the documentation is run, or at least looked at, by its kind; one that is not fails here.

A new page or block needs nothing to be found. What cannot be run stands in a list below, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pauses
import pytest
from doc_blocks import BLOCKS, PAGES, ROOT, Block, commands_of, lines_of, output_of, program_of
from native_tools import compile_plugin

import mqcore

# What runs in this process finds these here, and does not import them a second time.
import mqcore.testing.milter
import mqcore.testing.peer
import mqcore.testing.pytest_plugin
import mqcore.testing.smtp
from mqcore.cli import main, parser, run
from mqcore.cli.configuration import PREFIX, Options
from mqcore.mail import Connection, Mail
from mqcore.plugins._advice import advice_for
from mqcore.testing import Clock, Mq, PluginFactory, make_mail

pytest_plugins = ["pytester"]

QUIET = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark", "-p", "no:asyncio", "-p", "no:anyio", "-W", "error")

# Lists of what is not run.

SHOWN = {
    ("CONTRIBUTING.md", "mqcore/_message     Message and its states"): "a list of folders; tests/test_rooms.py has them",
    ("docs/elsewhere.md", "exports.hook_rcpt = function"): "JavaScript, for Haraka",
    ("docs/filter.md", "client -> Postfix, port 25 -> mqcore"): "a drawing",
    ("docs/machines.md", "rabbitmqctl add_vhost"): "changes a RabbitMQ; tests/partners/broker.py",
    ("docs/machines.md", "ExecStart=/usr/bin/mqcore"): "a line of a unit; tests/server/test_server_systemd.py",
    ("docs/mail.md", "mqcore run --from SOURCE --to SINK"): "a synopsis",
    ("docs/mail.md", "INFO mqcore.mail.refused: stage=rcptto"): "a line of a log; tests/cli/test_cli_logs.py",
    ("docs/receiving.md", "Received: from client.example"): "lines of a mail, with the time in them; tests/mail",
    ("docs/receiving.md", "Return-Path: <a@example.org>"): "lines of a mail; tests/mail",
    ("docs/receiving.md", "default_transport = lmtp:unix:"): "Postfix's main.cf; tests/partners",
    ("docs/milter.md", "client -> Postfix, port 25 -> its queue"): "a drawing",
    ("docs/milter.md", "INPUT_MAIL_FILTER"): "a line of sendmail.mc; tests/partners/partner_servers.py has its own",
    ("docs/operations.md", "mq_smtp_in_rcptto  for bob"): "what `mqcore ctl trace` prints; tests/cli/test_cli_trace.py",
    ("docs/operations.md", "2026-11-29T18:25:00.123Z WARNING"): "lines of a log; the tests of the watchdog",
    ("docs/operations.md", "2026-11-29T18:25:00.123Z INFO"): "a line of a log; tests/cli/test_cli_logs.py",
    ("docs/operations.md", '[run]\nfrom = "smtp://0.0.0.0:25"  #'): "what `mqcore config` prints; test_cli_configuration.py",
    ("docs/operations.md", "scrape_configs:"): "Prometheus' own configuration",
    ("docs/plugins.md", "plugins/10-a.py:2: plugin 10-a: mq_smtp_in_mesage"): "messages of errors, cut short; tests/plugins",
    ("docs/plugins.md", "plugins/10-a.py:2: plugin 10-a: warning"): "messages of warnings, cut short; tests/plugins",
}
"""Blocks that are for reading, by page and how they begin."""

ONLY_LOADED = {
    ("README.md", "import asyncio\nfrom asyncio.subprocess import PIPE"): "asks spamc, which need not be there",
    ("docs/plugins.md", "import mqcore\n\nasync def mq_smtp_in_rcptto"): "calls is_blocked(), which the reader has",
}
"""Plugins that are loaded and checked, and not given a mail."""

ELSEWHERE = {
    "docs/cython.md": "test_docs.py builds it, and tests/core/test_cython_hooks.py",
}
"""Pages whose blocks make a whole that another test builds."""

NOT_RUN = {
    ".": "changes the shell of the reader",
    "bash": "a program of this repository; the file is there",
    "chmod": "the system's",
    "dev": "a program of this repository; the task is there",
    "export": "changes the shell of the reader",
    "install": "the system's",
    "nightly": "a program of this repository; the file is there",
    "pip": "downloads",
    "postconf": "changes the Postfix of the machine; tests/partners",
    "postfix": "changes the Postfix of the machine; tests/partners",
    "pythons": "a program of this repository; the file is there",
    "python": "programs of this repository that take long; the file and its options are there",
    "swaks": "needs the server that the page is about; tests/partners",
    "venv": "takes seconds",
    "wheels": "a program of this repository; the file is there",
}
"""Commands that stand in the pages and are not run, by the name of the program. Of mqcore those that are not run, as they would
not end or would need what is not there, are parsed, by the parser of the command."""

SCRIPTS = ("dev", "nightly", "pythons", "wheels")
RUN = {"cc", "cat", "cd", "mkdir", "openssl", "printf", "pytest"}
RUN_OF_MQCORE = {"check", "config", "include", "new", "order", "try"}

TAKEN_FOR_GRANTED = {
    "docs/testing.md": {
        "10-later.py": "def mq_smtp_in_message(context, message):\n    context.start_timer(1, context.continue_, message)\n",
        "mail.eml": "Subject: no\n\nno\n",
        "plugins/10-tag.py": "def mq_smtp_in_message(context, message):\n    message.headers.add('X-Tag', '1')\n",
        "plugins/20-wait.py": "def mq_smtp_in_message(context, message):\n"
        "    context.start_timer(0.05, context.continue_, message)\n    return True\n",
        "plugins/30-no.py": "import asyncio\nasync def mq_smtp_in_message(context, message):\n    await asyncio.sleep(0.02)\n"
        "    message.reject(550, '5.7.1 no')\n",
        "plugins/40-never.py": "def mq_smtp_in_message(context, message):\n    return False\n",
    },
}
"""Files that the commands of a page need, and that the page does not show."""


def page_of(block: Block) -> str:
    return str(block.page.relative_to(ROOT))


def stands_in(listed: Mapping[tuple[str, str], str], block: Block) -> bool:
    return any(page == page_of(block) and block.text.startswith(beginning) for page, beginning in listed)


# What kind of block it is


def is_output(block: Block) -> bool:
    before = BLOCKS[BLOCKS.index(block) - 1]
    return before.language == "python" and output_of(before) is block.text


def is_test(block: Block) -> bool:
    return block.language == "python" and re.search(r"^(async )?def test_", block.text, re.MULTILINE) is not None


def is_plugin(block: Block) -> bool:
    is_python = block.language == "python" or (block.file or "").endswith(".py")
    return is_python and not is_test(block) and re.search(r"^(async )?def mq_", block.content, re.MULTILINE) is not None


def is_plugin_of_own_hooks(block: Block) -> bool:
    return (block.file or "").startswith("plugins/") and block.language == "python" and not is_plugin(block)


def is_script(block: Block) -> bool:
    return block.language == "python" and not is_test(block) and not is_plugin(block) and not is_plugin_of_own_hooks(block)


KINDS: dict[str, Callable[[Block], bool]] = {
    "elsewhere": lambda block: page_of(block) in ELSEWHERE,
    "shown": lambda block: stands_in(SHOWN, block),
    "output": lambda block: block.language == "text" and is_output(block),
    "test": is_test,
    "plugin": is_plugin,
    "plugin of own hooks": is_plugin_of_own_hooks,
    "script": is_script,
    "others": lambda block: block.language == "py",
    "c": lambda block: block.language == "c" or (block.file or "").endswith(".c"),
    "toml": lambda block: block.language == "toml",
    "shell": lambda block: block.language in ("sh", "console"),
    "site": lambda block: block.language.partition(" ")[0] in ("{eval-rst}", "{toctree}"),  # Sphinx runs it, which CI does
}


def of_kind(*kinds: str) -> list[object]:
    """Parameters for a test: the blocks of these kinds."""
    return [pytest.param(block, id=block.name) for block in BLOCKS if kind_of(block) in kinds]


def kind_of(block: Block) -> str | None:
    return next((kind for kind, fits in KINDS.items() if fits(block)), None)


def test_every_block_is_run_or_stands_in_a_list() -> None:
    assert [block.name for block in BLOCKS if kind_of(block) is None] == []
    fences = sum(len(re.findall(r"^ *(?:```|~~~)", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(BLOCKS), "a fence that is not closed"


def test_what_the_lists_name_is_there() -> None:
    for key in (*SHOWN, *ONLY_LOADED):
        assert sum(stands_in({key: ""}, block) for block in BLOCKS) == 1, key
    assert ELSEWHERE.keys() | TAKEN_FOR_GRANTED.keys() <= set(map(page_of, BLOCKS))
    programs = {program_of(words) for block in BLOCKS if kind_of(block) == "shell" for words in words_of(block)}
    assert NOT_RUN.keys() <= programs


# Python


@pytest.mark.parametrize("block", of_kind("script"))
def test_scripts_print_what_stands_below_them(block: Block, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    for each in BLOCKS:
        if each.page == block.page and kind_of(each) == "plugin of own hooks" and each.file:
            (tmp_path / each.file).write_text(each.content)
    script = [sys.executable, "-W", "error", "-c", block.text]
    result = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, printed_by(block))


def printed_by(block: Block) -> str:
    """What stands below a script; or, in a comment beside it, what its one `print` prints."""
    beside = re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.MULTILINE)
    return output_of(block) or "".join(f"{line}\n" for line in beside)


@pytest.mark.parametrize("block", of_kind("plugin of own hooks"))
def test_a_script_of_the_page_has_the_hooks_of_its_plugins(block: Block) -> None:
    """And loads them, above."""
    text = "".join(each.text for each in BLOCKS if each.page == block.page and kind_of(each) == "script")
    names = re.findall(r"^(?:async )?def ([a-z]\w*)\(context, ", block.text, re.MULTILINE)
    assert names and all(f'HookSpec("{name}"' in text for name in names) and 'Plugins("plugins"' in text


@pytest.mark.parametrize("block", of_kind("plugin"))
def test_plugins_take_a_mail_and_nothing_is_advised(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / Path(block.file or "10-example.py").name
    path.write_text(block.content)
    monkeypatch.syspath_prepend(tmp_path)
    for each in BLOCKS:  # modules that the page has beside its plugins
        if each.page == block.page and each.file and each.file.removesuffix(".py").isidentifier() and not is_test(each):
            (tmp_path / each.file).write_text(each.content)
    factory = PluginFactory(trust_writable=True)
    with Clock() as clock:
        try:
            (plugin,) = factory(path, config=config_of(block.page))
            assert list(advice_for(plugin, dir(Mail), dir(mqcore.Context), dir(Connection))) == []
            with Mq(clock, factory) as mq:
                for hook in () if stands_in(ONLY_LOADED, block) or has_test(block) else plugin.hooks:
                    mail = make_mail(b"From: a@example.org\r\nDelivered-To: b@example.net\r\nSubject: hello\r\n\r\nhello\r\n")
                    given = {"address": mail.recipient, "login": "alice", "password": "secret", "mime": mail.mime}
                    result = mq.run(hook, mail, *(given[name] for name in mq.plugins.hooks[hook].args))
                    assert result.outcome is not mqcore.FAIL, result
        finally:
            factory.close()


def has_test(block: Block) -> bool:
    """Whether a test of its page has it, which is run below, and knows better what it needs."""
    return any(block.page == each.page and is_test(each) and block.file in each.text for each in BLOCKS if block.file)


def config_of(page: Path) -> dict[str, dict[str, object]]:
    """The tables of plugins that the page shows."""
    tables: dict[str, dict[str, object]] = {}
    for block in BLOCKS:
        if block.page == page and kind_of(block) == "toml":
            tables |= tomllib.loads(block.text).get("plugins", {})
    return tables


@pytest.mark.parametrize("block", of_kind("others"))
def test_what_is_for_other_programs_is_python(block: Block) -> None:
    ast.parse(block.text)


# C


@pytest.mark.parametrize("block", of_kind("c"))
def test_c_is_compiled_and_plugins_load(block: Block, tmp_path: Path) -> None:
    """What is a part of a plugin is compiled behind the same `#include`."""
    path = compile_plugin(tmp_path / "10-plugin.so", "#include <string.h>\n" + block.content, "-Wno-unused-parameter")
    with mqcore.Plugins(path, trust_writable=True) as plugins:
        assert [each.name for each in plugins] == ["10-plugin"] and next(iter(plugins)).hooks


# TOML


@pytest.mark.parametrize("block", of_kind("toml"))
def test_toml_is_what_the_command_takes(block: Block, tmp_path: Path) -> None:
    content = tomllib.loads(block.text)
    if "project" in content:
        assert content.keys() == {"project"}
        for group, points in content["project"]["entry-points"].items():
            assert group == "mqcore.plugins"
            assert all(EntryPoint(name, value, group).module for name, value in points.items())
        return
    assert content.keys() <= {"run", "plugins"}
    path = tmp_path / "mqcore.toml"
    path.write_text(block.text)
    run.fit_together(Options(run.options()).in_file(argparse.Namespace(parser=parser()), str(path)))
    with mqcore.Plugins(config=path) as plugins:
        for name in content.get("plugins", {}):
            plugins.add(name, SimpleNamespace(mq_smtp_in_message=lambda context, message: False))
        assert [name for name in plugins.unused_config if name != "run"] == []


# Commands


def words_of(block: Block) -> list[list[str]]:
    return [words for line in lines_of(block.text) for words in commands_of(line)]


@pytest.mark.parametrize("block", of_kind("shell"))
def test_commands_are_right(block: Block) -> None:
    for words in words_of(block):
        while "=" in words[0]:
            name, _, value = words[0].partition("=")
            assert name in VARIABLES or (name == "MQCORE_PAUSES" and value in pauses.KINDS), f"{words[0]} is no option"
            words = words[1:]
        program = program_of(words)
        if program == "mqcore":
            parse(words)
        elif program in ("python", "bash", *SCRIPTS):
            look_at_program(words, program)
        elif program == "pytest":
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
        else:
            assert program in NOT_RUN or program in RUN, f"{program} is in no list of {Path(__file__).name}"


VARIABLES = {PREFIX + name.upper().replace("-", "_") for name in Options(run.options())._actions}


def parse(words: list[str]) -> None:
    """As the command does, and what goes together as `mqcore run` does."""
    arguments = arguments_of(words)
    options = parser().parse_args(arguments)
    if arguments[0] == "run":
        vars(options).pop("config", None)  # the file is not here, and is taken to say nothing
        vars(options).setdefault("source", None)
        run.fit_together(Options(run.options()).settled(options))


def look_at_program(words: list[str], program: str) -> None:
    """A file of this repository, with the options that it is given."""
    path = ROOT / words[0 if program in SCRIPTS else 1]
    if program == "python" and path.suffix != ".py":
        return  # python -m, which is another program
    text = path.read_text()
    if program == "dev":
        assert f"\n## {words[1]} " in text or f"\n## {words[1]}:" in text
    elif program == "python":
        beside = (path.with_name(f"{name}.py") for name in re.findall(r"^from (\w+) import", text, re.MULTILINE))
        text += "".join(each.read_text() for each in beside if each.exists())
        for word in words[2:]:
            assert not word.startswith("--") or f'"{word.partition("=")[0]}"' in text, f"{path} has no {word}"


def is_runnable(line: str) -> bool:
    """Whether it can be run in the folder of its page, without anything else."""
    each = list(commands_of(line))
    if any(word.startswith(("/", "tests/")) for words in each for word in words):
        return False
    ours = [arguments_of(words)[0] for words in each if program_of(words) == "mqcore"]
    return {program_of(words) for words in each} <= RUN | {"mqcore"} and set(ours) <= RUN_OF_MQCORE


def arguments_of(words: list[str]) -> list[str]:
    """Those of mqcore, also after `python -m`."""
    return words[words.index("mqcore") + 1 :] if "mqcore" in words else words[1:]


def runs(block: Block) -> bool:
    return kind_of(block) == "shell" and any(map(is_runnable, lines_of(block.text)))


PAGES_THAT_DO = [page for page in PAGES if any(block.page == page and (is_test(block) or runs(block)) for block in BLOCKS)]


def test_tests_of_pages_have_names_of_their_own() -> None:
    """One process cannot have two modules of one name."""
    ours = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert [block.name for block in BLOCKS if is_test(block) and file_of(block) in ours] == []


@pytest.mark.parametrize("page", PAGES_THAT_DO, ids=[str(page.relative_to(ROOT)) for page in PAGES_THAT_DO])
def test_commands_and_tests_of_a_page(
    page: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the order of the page: its files are written, and its commands run, one after the other; and then its tests."""
    blocks = [block for block in BLOCKS if block.page == page]
    for name, text in TAKEN_FOR_GRANTED.get(str(page.relative_to(ROOT)), {}).items():
        write(pytester.path / name, text)
    # What is under test is what this process imports, wherever it is; the programs are those beside this Python.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path or os.getcwd() for path in sys.path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for block in blocks:
        if file := file_of(block):
            write(pytester.path / file, block.content)
        for line in filter(is_runnable, lines_of(block.text)) if kind_of(block) == "shell" else ():
            run_line(line, pytester, block, capfd)
    tests = list(filter(is_test, blocks))
    if tests:
        count = sum(len(re.findall(r"^(?:async )?def test_", block.text, re.MULTILINE)) for block in tests)
        outcomes = pytester.runpytest_inprocess(*QUIET, *map(file_of, tests)).parseoutcomes()
        assert outcomes.keys() == {"passed"} and outcomes["passed"] >= count


def file_of(block: Block) -> str | None:
    return block.file or (f"test_block_{block.line}.py" if is_test(block) else None)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def run_line(line: str, pytester: pytest.Pytester, block: Block, capfd: pytest.CaptureFixture[str]) -> None:
    """One that is a single command is run in this process if it is of ours, as a start takes long."""
    each = list(commands_of(line))
    capfd.readouterr()
    if len(each) == 1 and program_of(each[0]) == "pytest":
        assert pytester.runpytest_inprocess(*QUIET, *each[0][1:]).ret == 0
        return
    if len(each) == 1 and program_of(each[0]) == "mqcore":
        code = main(each[0][1:])
    else:
        code = subprocess.run(["bash", "-c", line], timeout=60, check=False).returncode
    out, err = capfd.readouterr()
    # `mqcore try` says by its exit code that a mail was refused.
    assert code == 0 or (code == 1 and "mqcore try" in line), (line, code, out, err)
    if block.language == "console":
        assert alike(f"$ {line}\n{out}", block.text), out


def alike(one: str, other: str) -> bool:
    """But for how long things took, and the room that this takes."""
    first, second = (re.sub(r"\d+(\.\d+)? us", "N us", text).split() for text in (one, other))
    return first == second
