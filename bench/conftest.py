"""The bench: `pytest bench`, or `pytest bench --short` for fewer and smaller rounds. See README.md."""

from __future__ import annotations

import gc
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import table
import uvloop
from comparing import Row, compare

from mqcore.loop._libuv import Library

TIMES = ("ns", "ms")

ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --short."""
    parser.addoption("--short", action="store_true", help="fewer rounds, without the largest sizes, as in CI")


def pytest_configure(config: pytest.Config) -> None:
    """Make room for the rows."""
    config.stash[ROWS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked `large` takes longest, and says little in few rounds."""
    if config.getoption("--short"):
        large = [item for item in items if item.get_closest_marker("large")]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]


@pytest.fixture(scope="session")
def short(request: pytest.FixtureRequest) -> bool:
    """Whether this is the short form."""
    return bool(request.config.getoption("--short"))


@pytest.fixture
def loop() -> Iterator[uvloop.Loop]:
    """A uvloop loop that does not run."""
    made = uvloop.new_event_loop()
    yield made
    made.run_until_complete(made.shutdown_asyncgens())
    made.close()


def beyond(row: Row) -> str:
    """What is told of a row whose bound is broken."""
    return f"{row.case}: {row.mqcore_cost:,.1f} {row.unit} beside {row.base_cost:,.1f}; the goal is {row.goal}"


@pytest.fixture
def report(request: pytest.FixtureRequest, short: bool) -> Callable[[Row], None]:
    """Put a row into the table; the test fails when its bound is broken.

    Few and short rounds say too little of a time, on a machine that others use too: there a time beyond its bound is told of
    below the table, and no more. Instructions and bytes are the same each time.
    """

    def put(row: Row) -> None:
        request.config.stash[ROWS].append(row)
        assert row.bound_kept or (short and row.unit in TIMES), beyond(row)

    return put


@pytest.fixture
def against(benchmark: Any, short: bool, report: Callable[[Row], None]) -> Callable[..., None]:
    """`against(group, case, contenders, rounds=, count=)`: compare, and put the row into the table.

    The short form takes a tenth of the rounds, and not fewer than three.
    """

    def put(group: str, case: str, contenders: dict[str, Callable[[], Any]], *, rounds: int, **options: Any) -> None:
        gc.collect()
        rounds = max(3, rounds // 10) if short else rounds
        report(compare(benchmark, group, case, contenders, rounds=rounds, **options))

    return put


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add to what pytest-benchmark knows of the machine what the figures depend on besides."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    machine_info["versions"] = {
        "mqcore": project["version"],
        "uvloop": version("uvloop"),
        "libuv": Library("uvloop", uvloop.loop.__file__).version,
    }
    command = ["df", "--output=fstype", tempfile.gettempdir()]
    machine_info["file_system"] = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add the table's rows to what --benchmark-json writes, and in which form they were measured."""
    output_json["short"] = config.getoption("--short")
    output_json["rows"] = [row.as_json() for row in config.stash[ROWS]]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table."""
    if config.stash[ROWS]:
        for line in table.lines_of(config.stash[ROWS]):
            terminalreporter.write_line(line)
        for row in config.stash[ROWS]:
            if not row.bound_kept:
                terminalreporter.write_line(f"beyond its bound: {beyond(row)}")
