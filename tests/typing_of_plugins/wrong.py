"""What a type checker has to find: the comment of a line names the code of its error."""

from __future__ import annotations

import mqcore
from mqcore.mail import Mail
from mqcore.mail.hook_types import Hooks, Plugin, SmtpInMessage, SmtpInRcptto


def too_few(context: mqcore.Context, message: Mail) -> mqcore.HookResult:
    message.recipent = "b@example.org"  # error: attr-defined
    message.recipients = 5  # error: assignment
    message.recipient = ["b@example.org"]  # error: assignment
    message.headers["Subject"] = "x"  # error: index
    message.reject("no", 550)  # error: arg-type
    context.start_timer("1", context.continue_, message)  # error: arg-type
    context.continue_()  # error: call-arg
    return message.mime  # error: return-value


def fails(context: mqcore.Context, message: Mail) -> mqcore.HookResult:
    return mqcore.FAIL  # error: return-value


def tells(context: mqcore.Context, message: Mail) -> str:
    return "reject"


def other_argument(context: mqcore.Context, message: Mail, address: bytes) -> None: ...


async def tells_later(context: mqcore.Context, message: Mail) -> str:
    return "reject"


one: SmtpInRcptto = too_few  # error: assignment
two: SmtpInMessage = tells  # error: assignment
three: SmtpInMessage = tells_later  # error: assignment
four = Hooks(mq_smtp_in_rcptto=other_argument)  # error: typeddict-item
five = Hooks(mq_smtp_in_mesage=fails)  # error: typeddict-unknown-key


class Audit(Plugin):
    def mq_smtp_in_message(self, context: mqcore.Context) -> None: ...  # error: override

    def mq_smtp_out_data(self, context: mqcore.Context, message: Mail) -> str:  # error: override
        return "no"

    async def mq_smtp_out_sent(self, context: mqcore.Context, message: Mail) -> str:  # error: override
        return "no"
