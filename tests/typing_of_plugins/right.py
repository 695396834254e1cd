"""What a type checker has to take."""

from __future__ import annotations

import asyncio

import mqcore
from mqcore.mail import Mail
from mqcore.mail.hook_types import Hooks, Plugin, SmtpInMessage


def mq_context_initialize(context: mqcore.Context) -> None:
    context.data["n"] = context.config.get("n", 5)


def mq_smtp_in_rcptto(ctx: mqcore.Context, mail: Mail, address: str) -> mqcore.HookResult:
    if address.endswith("@example.org"):
        return mqcore.COMPLETE
    ctx.start_timer(1.0, ctx.continue_, mail)
    return mqcore.HOLD


async def mq_smtp_in_message(context: mqcore.Context, message: Mail) -> bool:
    await asyncio.sleep(1)
    message.headers.replace("Subject", "x")
    return False


def mq_smtp_in_data(context: mqcore.Context, message: Mail, mime: bytes) -> mqcore.Hold:
    hold = context.hold(message)
    hold.start_timer(1.0, hold.complete)
    return hold


def mq_smtp_in_close(context: mqcore.Context, message: mqcore.Message) -> None:
    context.log.info("closed")


_ = Hooks(
    mq_context_initialize=mq_context_initialize,
    mq_smtp_in_rcptto=mq_smtp_in_rcptto,
    mq_smtp_in_message=mq_smtp_in_message,
    mq_smtp_in_data=mq_smtp_in_data,
    mq_smtp_in_close=mq_smtp_in_close,
)


class Audit(Plugin):
    def mq_smtp_in_authenticate(self, context: mqcore.Context, message: Mail, login: str, password: str) -> None:
        context.log.info("%s", login)

    async def mq_smtp_out_data(self, context: mqcore.Context, message: Mail) -> mqcore.Verdict:
        return mqcore.RETRY

    def look(self, context: mqcore.Context, message: Mail) -> mqcore.HookResult:
        return None


hook: SmtpInMessage = Audit().look
