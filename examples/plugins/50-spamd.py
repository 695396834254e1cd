"""Ask SpamAssassin's spamd, with asyncio: a hook may be a coroutine, and has the mail until it returns.

Spam is rejected, or where there is no doubt accepted and dropped; other mail gets its score on top. Where spamd is must be set
in mqcore.toml; without an address this plugin does nothing.

    [plugins.50-spamd]
    address = "127.0.0.1:783"
    connections = 8
    discard = 15.0        # the score from which on spam is dropped without a word; left out: none is
"""

import asyncio
import math
import re

from mqcore import Context
from mqcore.mail import Mail


def mq_context_initialize(context: Context) -> None:
    context.data["slots"] = asyncio.Semaphore(context.config.get("connections", 8))


async def mq_smtp_in_message(context: Context, message: Mail) -> bool:
    address = context.config.get("address")
    if not address:
        return False
    host, _, port = address.rpartition(":")
    async with context.data["slots"], asyncio.timeout(20):
        spam, score = await ask(host, int(port), message.mime)
    # Who rejects or discards has decided: the plugins after this one are not called.
    if spam and score >= context.config.get("discard", math.inf):
        message.discard()
    elif spam:
        message.reject(550, "this looks like spam")
    else:
        message.headers.replace("X-Spam-Score", str(score))  # in place of what the sender says of himself
    return False


async def ask(host: str, port: int, mime: bytes) -> tuple[bool, float]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"CHECK SPAMC/1.5\r\nContent-length: %d\r\n\r\n" % len(mime) + mime)
        answer = await reader.read()
    finally:
        writer.close()
    status, *headers = answer.decode().split("\r\n")
    verdict = re.search(r"^Spam: (\w+) ; (-?[\d.]+)", "\n".join(headers), re.MULTILINE)
    if not status.endswith("EX_OK") or verdict is None:
        raise RuntimeError(f"spamd says {status!r}")
    return verdict[1] == "True", float(verdict[2])
