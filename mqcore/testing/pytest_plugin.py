"""The fixtures of `mqcore.testing` for pytest, which finds them by an entry point.

All else is imported when a test asks for a fixture. PYTEST_DONT_REWRITE: the package has no assertions for pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..mail import Mail
    from . import Clock, MilterDialogues, Mq, Peer, PluginFactory, SmtpDialogues

MOST_DIFFS = 5
"""Of the newest results of a test that failed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mqcore", "plugins of mqcore")
    group.addoption(
        "--mqcore-loop", choices=("uvloop", "pyuv"), default="uvloop", help="whose loop plugins are tested on (default: uvloop)"
    )
    group.addoption(
        "--mqcore-real-time", action="store_true", help="let the clock of tests of plugins move no faster than the time does"
    )


@pytest.fixture
def mq_clock(request: pytest.FixtureRequest) -> Iterator[Clock]:
    """The clock of the test, an `mqcore.testing.Clock`."""
    from . import Clock

    config = request.config
    with Clock(config.getoption("--mqcore-loop"), real_time=config.getoption("--mqcore-real-time")) as clock:
        yield clock


@pytest.fixture
def mq_plugins() -> Iterator[PluginFactory]:
    """Makes sets of plugins, an `mqcore.testing.PluginFactory`: `mq_plugins("plugins/10-a.py", config={"limit": 3})`."""
    from . import PluginFactory

    factory = PluginFactory()
    yield factory
    factory.close()


@pytest.fixture
def mq(mq_clock: Clock, mq_plugins: PluginFactory) -> Iterator[Mq]:
    """Runs mails through the plugins that `mq_plugins` made last, an `mqcore.testing.Mq`; in the end it checks that no message
    is lost or held, and that no timer or watcher runs on."""
    from . import Mq

    with Mq(mq_clock, mq_plugins) as made:
        yield made


@pytest.fixture
def mq_mail() -> Callable[..., Mail]:
    """Makes mails, `mqcore.testing.make_mail`: of a file, of bytes, or of `headers=` and `body=`."""
    from . import make_mail

    return make_mail


@pytest.fixture
def mq_smtp(mq: Mq) -> Iterator[SmtpDialogues]:
    """Dialogues of SMTP clients with a server in memory, an `mqcore.testing.SmtpDialogues`."""
    from . import SmtpDialogues

    with SmtpDialogues(mq) as made:
        yield made


@pytest.fixture
def mq_milter(mq: Mq) -> Iterator[MilterDialogues]:
    """Dialogues of a Postfix with a milter in memory, an `mqcore.testing.MilterDialogues`."""
    from . import MilterDialogues

    with MilterDialogues(mq) as made:
        yield made


@pytest.fixture
def mq_peer(mq_clock: Clock) -> Iterator[Peer]:
    """A scripted server, an `mqcore.testing.Peer`: `mq_peer.expect(b"PING").delay(5).send(b"PONG")`."""
    from . import Peer

    with Peer(mq_clock) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    mq = getattr(item, "funcargs", {}).get("mq")
    if report.failed and call.when == "call" and mq is not None and hasattr(mq, "results"):
        for result in list(mq.results)[-MOST_DIFFS:]:
            if text := result.describe():
                report.sections.append((f"what plugins changed in {result.hook}", text))
    return report
