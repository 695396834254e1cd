"""The plugin for pytest, tested with pytest's own pytester."""

from __future__ import annotations

import pytest

# What runs in this process finds these here, and does not import them a second time.
import mqcore.testing.clock
import mqcore.testing.mail
import mqcore.testing.peer
import mqcore.testing.plugins
import mqcore.testing.pytest_plugin
import mqcore.testing.smtp
import mqcore.testing.steps  # noqa: F401

pytest_plugins = ["pytester"]

PLUGIN = """
def mq_smtp_in_message(context, message):
    message.headers.add("X-Tag", "1")
    message.json["seen"] = True
    context.start_timer(context.config.get("seconds", 600), context.continue_, message)
    return True
"""
ALONE = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark", "-W", "error")
QUIET = (*ALONE, "-p", "no:asyncio", "-p", "no:anyio")


@pytest.fixture
def tests(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makefile(".py", **{"10-tag": PLUGIN})
    return pytester


def test_fixtures(tests: pytest.Pytester) -> None:
    tests.makepyfile("""
        import asyncio
        import mqcore

        def test_it(mq, mq_plugins, mq_mail, mq_clock):
            mq_plugins("10-tag.py", config={"hold_timeout": 1000})
            result = mq.run("mq_smtp_in_message", mq_mail(headers={"Subject": "hello"}))
            assert result.outcome is mqcore.CONTINUE
            assert result.changes == ("+X-Tag: 1", "+seen: true")
            assert mq_clock.now == 600

        def test_more(mq_smtp, mq_plugins, mq_peer):
            mq_plugins("10-tag.py", config={"seconds": 1})
            client = mq_smtp.connect()
            client.ehlo(), client.mail(), client.rcpt()
            assert client.data().code == 250 and mq_peer.port

        def test_clock_alone(mq_clock):
            mq_clock.run(asyncio.sleep(3600))
            assert mq_clock.now == 3600
    """)
    tests.runpytest_inprocess(*QUIET).assert_outcomes(passed=3)


def test_a_failed_assertion_shows_what_was_changed(tests: pytest.Pytester) -> None:
    tests.makepyfile("""
        def test_it(mq, mq_plugins, mq_mail):
            mq_plugins("10-tag.py", config={"seconds": 1})
            result = mq.run("mq_smtp_in_message", mq_mail(headers={"Subject": "hello"}))
            assert result.mail.headers["X-Tag"] == "2"
    """)
    run = tests.runpytest_inprocess(*QUIET)
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines(["*what plugins changed in mq_smtp_in_message*", "--- before", "+X-Tag: 1", "+seen: true"])


def test_the_teardown_checks(tests: pytest.Pytester) -> None:
    tests.makepyfile("""
        def test_it(mq, mq_plugins, mq_mail):
            mq_plugins("10-tag.py")
            step = mq.start("mq_smtp_in_message", mq_mail())
            assert step.held_by == "10-tag"
    """)
    run = tests.runpytest_inprocess(*QUIET)
    run.assert_outcomes(passed=1, errors=1)
    run.stdout.fnmatch_lines(["*AssertionError: plugin 10-tag still holds*", "*10-tag still has a timer, due at 600 s*"])


def test_options(tests: pytest.Pytester) -> None:
    tests.makepyfile("""
        import time
        import pyuv

        def test_it(mq, mq_plugins, mq_mail, mq_clock):
            assert isinstance(mq_clock.loop, pyuv.Loop)
            mq_plugins("10-tag.py", config={"seconds": 0.02})
            began = time.monotonic()
            mq.run("mq_smtp_in_message", mq_mail())
            assert time.monotonic() - began >= 0.02
    """)
    tests.runpytest_inprocess(*QUIET, "--mqcore-loop", "pyuv", "--mqcore-real-time").assert_outcomes(passed=1)


def test_what_does_not_ask_for_it_pays_nothing(tests: pytest.Pytester) -> None:
    """Nothing is autouse, no loop is made, and the kit is not even imported."""
    tests.makepyfile("""
        import sys

        def test_it(request):
            assert not [name for name in request.fixturenames if name.startswith("mq")]
            assert [name for name in sys.modules if name.startswith("mqcore.testing.")] == ["mqcore.testing.pytest_plugin"]
            assert "mqcore.mail" not in sys.modules
    """)
    tests.runpytest_subprocess(*QUIET).assert_outcomes(passed=1)


@pytest.mark.parametrize("beside", ["asyncio", "anyio"])
def test_beside_others(tests: pytest.Pytester, beside: str) -> None:
    tests.makepyfile(f"""
        import asyncio
        import pytest

        @pytest.mark.{beside}
        async def test_theirs():
            await asyncio.sleep(0)

        def test_ours(mq, mq_plugins, mq_mail):
            mq_plugins("10-tag.py", config={{"seconds": 1}})
            mq.run("mq_smtp_in_message", mq_mail())
    """)
    tests.makeconftest("import pytest\n\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n")
    tests.runpytest_inprocess(*ALONE, "-o", "asyncio_default_fixture_loop_scope=function").assert_outcomes(passed=2)
