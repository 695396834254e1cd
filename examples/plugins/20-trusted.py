"""Let mail from our own domains pass at once: *complete* skips all plugins after this one.

Which domains these are is set in mqcore.toml:

    [plugins.20-trusted]
    domains = ["example.org"]
"""

import mqcore
from mqcore.mail import Mail


def mq_smtp_in_message(context: mqcore.Context, message: Mail) -> mqcore.HookResult:
    domain = (message.envelope or "").rpartition("@")[2].lower()
    if domain and domain in context.config.get("domains", ["example.org"]):
        return mqcore.COMPLETE
    return False
