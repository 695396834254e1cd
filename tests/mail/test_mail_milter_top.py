"""Fields that plugins put on top, which a server is told of without the mail being read again: what it makes of that is what
plugins made, also where such a field is like one that was there."""

from __future__ import annotations

from types import SimpleNamespace

from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mqcore.milter.edits import join
from mqcore.testing import Clock, MilterDialogues, Mq, PluginFactory

names = st.sampled_from(["Received", "X-A", "x-a", "Subject"])
values = st.sampled_from(["1", "2", "", "=?utf-8?q?=C3=A4?=", "many words " * 12])  # the last takes several lines
fields = st.lists(st.tuples(names, st.one_of(values, st.just("two\r\n\tlines"))), max_size=4)


@settings(max_examples=examples(300), deadline=None)
@given(fields, st.lists(st.tuples(names, values), max_size=3), st.booleans())
def test_the_server_makes_what_plugins_made(before: list[tuple[str, str]], added: list[tuple[str, str]], blank: bool) -> None:
    sent = join([(name.encode(), (" " * blank + value).encode()) for name, value in before], b"body\r\n")
    made: list[bytes] = []

    def add(context: object, mail: object) -> None:
        for name, value in added:
            mail.headers.add(name, value)  # type: ignore[attr-defined]
        made.append(mail.mime)  # type: ignore[attr-defined]

    plugins = PluginFactory()
    try:
        with Clock() as clock, Mq(clock, plugins) as mq, MilterDialogues(mq) as milter:
            plugins(obj=SimpleNamespace(mq_smtp_in_message=add))
            client = milter.connect()
            client.ehlo(), client.mail(), client.rcpt()
            assert client.data(sent).code == 250
            assert [mail.mime for mail in milter.stored] == made
    finally:
        plugins.close()
