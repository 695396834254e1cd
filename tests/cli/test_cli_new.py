"""`mqcore new`: what it writes is right, typed and linted, and its tests pass, for each kind."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cli_tools import need

import mqcore
from mqcore.cli import main, new

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_it_writes(folder, capsys):
    assert main(["new", "my-greylist"]) == 0
    assert files_in(folder) == ["mqcore.toml", "plugins/10-my-greylist.py", "test_my_greylist.py"]
    assert tomllib.loads(Path("mqcore.toml").read_text()) == {"plugins": {"10-my-greylist": {"blocked": "spammer@example.org"}}}
    said = capsys.readouterr().out
    assert said == (
        "plugins/10-my-greylist.py\ntest_my_greylist.py\nmqcore.toml: [plugins.10-my-greylist]\n\n"
        "pytest\nmqcore check --config mqcore.toml plugins\n"
    )
    assert "@" not in Path("plugins/10-my-greylist.py").read_text().replace("spammer@example.org", "")
    with mqcore.Plugins("plugins", config="mqcore.toml") as plugins:
        assert [(plugin.name, list(plugin.hooks)) for plugin in plugins] == [("10-my-greylist", ["mq_smtp_in_mailfrom"])]


def test_the_next_number_and_what_is_in_the_file_already(folder):
    (folder / "plugins").mkdir()
    (folder / "plugins" / "15-first.py").touch()
    config = Path("mqcore.toml")
    config.write_text("[run]\njson = true\n")
    assert main(["new", "second", "--kind", "async"]) == 0
    assert main(["new", "third", "--kind", "cython"]) == 0
    assert main(["new", "fourth", "--kind", "c"]) == 0
    assert files_in(folder / "plugins") == [
        "15-first.py", "20-second.py", "30-third/__init__.py", "30-third/_hooks.pyx", "30-third/setup.py",
    ]
    assert config.read_text().startswith("[run]\njson = true\n\n[plugins.20-second]\n")
    assert sorted(tomllib.loads(config.read_text())["plugins"]) == ["20-second", "30-third", "40-fourth"]


def test_a_package(folder):
    assert main(["new", "my-greylist", "--package"]) == 0
    assert files_in(folder) == ["mqcore.toml", "my_greylist.py", "pyproject.toml", "test_my_greylist.py"]
    project = tomllib.loads(Path("pyproject.toml").read_text())
    assert project["project"]["entry-points"]["mqcore.plugins"] == {"10-my-greylist": "my_greylist"}


def test_a_package_in_cython(folder, capsys):
    assert main(["new", "my-fast", "--kind", "cython", "--package"]) == 0
    assert files_in(folder) == [
        "mqcore.toml", "my_fast/__init__.py", "my_fast/_hooks.pyx", "pyproject.toml", "setup.py", "test_my_fast.py",
    ]
    project = tomllib.loads(Path("pyproject.toml").read_text())
    assert project["project"]["entry-points"]["mqcore.plugins"] == {"10-my-fast": "my_fast"}
    assert project["build-system"]["requires"] == ["Cython>=3.1", "mqcore", "setuptools>=77"]
    assert project["tool"]["setuptools"] == {"packages": ["my_fast"]}
    assert "pip install --no-build-isolation -e '.[test]'\npytest\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Grey"], "'Grey' is no name for it"),
        (["gr_ey"], "small letters, digits and dashes, as my-greylist"),
        (["10-grey"], "'10-grey' begins with a digit; the number of its place is put before it"),
        (["grey", "--kind", "c", "--package"], "--package is for --kind python, async, cython, and not for c"),
    ],
)
def test_wrong_usage(folder, capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main(["new", *arguments])
    assert caught.value.code == 2 and words in capsys.readouterr().err
    assert files_in(folder) == []


def test_nothing_is_overwritten(folder, capsys):
    Path("test_grey.py").write_text("mine")
    Path("Makefile").write_text("mine")
    with pytest.raises(SystemExit):
        main(["new", "grey", "--kind", "c"])
    assert "Makefile, test_grey.py: there already, and nothing is overwritten" in capsys.readouterr().err
    assert files_in(folder) == ["Makefile", "test_grey.py"]


@pytest.mark.parametrize("text", ["plugins = 5\n", "[plugins\n"])
def test_a_file_that_takes_no_table(folder, capsys, text):
    Path("mqcore.toml").write_text(text)
    with pytest.raises(SystemExit):
        main(["new", "grey"])
    assert "mqcore.toml cannot have a table [plugins.10-grey] behind what is there" in capsys.readouterr().err
    assert files_in(folder) == ["mqcore.toml"]


def test_there_is_no_number_after_the_last(folder, capsys):
    (folder / "plugins").mkdir()
    (folder / "plugins" / "95-last.py").touch()
    with pytest.raises(SystemExit):
        main(["new", "grey"])
    assert "there is no ten after it" in capsys.readouterr().err


def build(folder: Path, *command: str | Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_makefile_makes_its_folder(folder):
    need("make")
    assert main(["new", "count", "--kind", "c"]) == 0
    build(folder, "make", "CC=touch plugins/10-count.so; :", "MQCORE=")  # the compiler writes into a folder that is there
    assert Path("plugins/10-count.so").exists()


@pytest.mark.slow
def test_all_kinds_are_built_typed_linted_and_tested(folder):
    need("make")
    need("pkg-config")
    for kind in new.KINDS:
        assert main(["new", f"my-{kind}", "--kind", kind]) == 0
    (folder / "package").mkdir()
    os.chdir(folder / "package")
    assert main(["new", "packed", "--package"]) == 0
    (folder / "fast").mkdir()
    os.chdir(folder / "fast")
    assert main(["new", "fast-one", "--kind", "cython", "--package"]) == 0
    build(folder / "fast", sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    (cython,) = folder.glob("plugins/*-my-cython")
    build(cython, sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    build(folder, "make", f"PYTHON={sys.executable}")

    patterns = ("plugins/*.py", "test_*.py", "package/*.py", "fast/test_*.py")
    sources = [path for pattern in patterns for path in folder.glob(pattern)]
    build(folder, sys.executable, "-m", "mypy", "--strict", "--cache-dir", folder / ".mypy_cache", *sources)
    # Plugins are named by their place in the order; setup.py is for building.
    build(folder, sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "--ignore", "N999", folder)
    alone = ("-p", "no:cacheprovider", "-p", "no:asyncio")
    build(folder, sys.executable, "-P", "-X", "dev", "-m", "pytest", "-q", "-W", "error", *alone, folder)
    build(folder, sys.executable, "-m", "mqcore", "check", "--config", "mqcore.toml", "plugins")
