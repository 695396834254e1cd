"""What authors of tests are told who hand over what the kit does not take."""

from __future__ import annotations

import pytest

import mqcore
from mqcore.testing import Mq, PluginFactory, make_mail


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": "Subject: hello\n\nhello\n"}, "and this has several lines; give a mail as bytes"),
        ({"headers": "Subject: hello"}, "headers= is a mapping, or pairs"),
        ({"to": 3}, "to= is an address or several, not 3"),
        ({"source": b"", "body": "hello"}, "not of both"),
    ],
)
def test_mails(given, said):
    with pytest.raises(TypeError, match=said):
        make_mail(**given)


@pytest.mark.parametrize("kind", ["mq_smtp", "mq_milter"])
def test_a_message_in_a_dialogue(request, mq_plugins, kind):
    mq_plugins(obj=object())
    client = request.getfixturevalue(kind).connect()
    assert [client.ehlo().code, client.mail().code, client.rcpt().code] == [250] * 3
    with pytest.raises(TypeError, match=r"a message is bytes, or a mail as mq_mail\(\) makes it, not 'Subject: x"):
        client.data("Subject: x\r\n\r\nhello\r\n")
    client.drop()


def test_a_peer(mq_peer):
    with pytest.raises(TypeError, match=r"expect\(\) takes bytes, .*, not 'PING'; write expect\(b'PING'\)"):
        mq_peer.expect("PING")
    with pytest.raises(TypeError, match=r"send\(\) takes bytes, as they are on the wire, not 3"):
        mq_peer.send(3)
    with pytest.raises(TypeError, match=r"delay\(\) takes seconds, a number, not '1'"):
        mq_peer.delay("1")


def test_plugins():
    with pytest.raises(TypeError, match="config=, where it is no mapping, is a str or os.PathLike, not 3"):
        PluginFactory()(config=3)


def test_a_timer_that_outlives_its_step(mq_plugins, mq_mail, mq_clock):
    class Late:
        def mq_smtp_in_message(self, context, message):
            context.start_timer(40, context.continue_, message)
            return mqcore.HOLD

    mq_plugins(obj=Late())
    mq = Mq(mq_clock, mq_plugins)
    assert isinstance(mq.run("mq_smtp_in_message", mq_mail()).error, mqcore.HoldTimeout)
    with pytest.raises(AssertionError, match=r"start the timer by the Hold, context.hold\(message\).start_timer\(...\)"):
        mq.close()
