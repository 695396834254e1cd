"""Sign what goes out by SMTP with DKIM, by dkimpy (`pip install dkimpy`). It has to be the last plugin: what changes the mail
after it breaks the signature.

Whose mail is signed, and with what, must be set in mqcore.toml; without a key this plugin does nothing. The public key belongs
into DNS, at SELECTOR._domainkey.DOMAIN.

    [plugins.90-dkim]
    domain = "example.org"                 # that of the address in From
    selector = "mail"
    key = "/etc/mqcore/dkim.pem"           # RSA, in PEM: `openssl genrsa 2048`
    threads = 2
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from email.utils import parseaddr
from pathlib import Path

from mqcore import Context
from mqcore.mail import Mail


def mq_context_initialize(context: Context) -> None:
    if not context.config.get("key"):
        return
    try:
        import dkim  # here, so that nobody needs it who does not sign
    except ModuleNotFoundError:
        raise RuntimeError("signing needs dkimpy: pip install dkimpy") from None
    context.data["sign"] = dkim.sign
    context.data["key"] = Path(context.config["key"]).read_bytes()
    context.data["threads"] = ThreadPoolExecutor(context.config.get("threads", 2), "dkim")


def mq_context_cleanup(context: Context) -> None:
    if "threads" in context.data:
        context.data["threads"].shutdown()


async def mq_smtp_out_data(context: Context, message: Mail) -> bool:
    config, name = context.config, context.plugin.name
    domain = parseaddr(message.headers.get("From", ""))[1].rpartition("@")[2].lower()
    # A step may start again (see 60-unsrs.py), so what is signed already is not signed twice.
    if "sign" not in context.data or domain != config["domain"].lower() or name in message.data:
        return False
    # Signing takes milliseconds, for which no other mail should have to wait.
    signature = await asyncio.get_running_loop().run_in_executor(context.data["threads"], sign, context, message.mime)
    message.data[name] = True
    # As bytes it is written as it was made, in its own lines.
    message.headers.add("DKIM-Signature", signature.partition(b": ")[2].rstrip())
    return False


def sign(context: Context, mime: bytes) -> bytes:
    """In a thread: nothing here touches the message."""
    config = context.config
    signature: bytes = context.data["sign"](
        mime, config["selector"].encode(), config["domain"].encode(), context.data["key"],
        canonicalize=(b"relaxed", b"relaxed"),
    )
    return signature
