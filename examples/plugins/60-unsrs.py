"""Undo SRS, by which forwarders put their own address in the sender's place, and start again with the real sender.

`SRS0=hash=day=example.com=alice@forwarder.example` was `alice@example.com`. The plugins before this one, such as those
that go by the sender's domain, must see that address: so this one asks for a *retry*, which begins at the first plugin.

Why this is safe: it asks only after a change that takes its reason away. When it is called the second time, there is no
SRS left to undo, so it cannot go on for ever. And the plugins before it bear being called twice for one mail.
"""

import re

import mqcore
from mqcore.mail import Mail

SRS = re.compile(r"SRS0[=+-][^=]+=[^=]+=(?P<domain>[^=]+)=(?P<user>[^@]+)@", re.IGNORECASE)


def mq_smtp_in_message(context: mqcore.Context, message: Mail) -> mqcore.HookResult:
    match = SRS.match(message.envelope or "")
    if match is None:
        return False
    message.envelope = f"{match['user']}@{match['domain']}"
    return mqcore.RETRY
