"""Let no domain send faster than so many mails a second. A mail too many waits on a timer, and no other mail with it.

How many is set in mqcore.toml:

    [plugins.30-pace]
    per_second = 100
"""

import time

from mqcore import HOLD, Context, HookResult
from mqcore.mail import Mail


def mq_smtp_in_message(context: Context, message: Mail) -> HookResult:
    domain = (message.envelope or "").rpartition("@")[2].lower()
    now = time.monotonic()
    free = context.data.setdefault("free", {})  # from when on each domain may send
    start = max(now, free.get(domain, 0.0))
    free[domain] = start + 1 / context.config.get("per_second", 100)
    if start == now:
        return False
    context.start_timer(start - now, context.continue_, message)
    return HOLD
