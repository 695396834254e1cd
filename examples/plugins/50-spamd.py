"""Ask SpamAssassin's spamd, with asyncio: a hook may be a coroutine, and has the mail until it returns.

Where spamd is must be set in mqcore.toml; without an address this plugin does nothing.

    [plugins.50-spamd]
    address = "127.0.0.1:783"
    connections = 8
"""

import asyncio

import mqcore


def mq_context_initialize(context):
    context.data["slots"] = asyncio.Semaphore(context.config.get("connections", 8))


async def mq_smtp_in_message(context, message):
    address = context.config.get("address")
    if not address:
        return False
    async with context.data["slots"], asyncio.timeout(20):
        spam = await ask(*address.rsplit(":", 1), message.mime)
    if spam:
        message.reject(550, "this looks like spam")
        return mqcore.COMPLETE
    return False


async def ask(host, port, mime):
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"CHECK SPAMC/1.5\r\nContent-length: %d\r\n\r\n" % len(mime) + mime)
        answer = await reader.read()
    finally:
        writer.close()
    status, *headers = answer.decode().split("\r\n")
    if not status.endswith("EX_OK"):
        raise RuntimeError(f"spamd says {status!r}")
    return any(header.startswith("Spam: True") for header in headers)
