"""Tag mail by its headers: put a line `X-Tag: NAME` on top of each mail that a rule matches.

Its rules may be set in mqcore.toml:

    [plugins.10-tag]
    rules = [{ header = "List-Id", pattern = ".", tag = "list" }]
"""

import re

import mqcore
from mqcore.mail import Mail

RULES = [
    {"header": "List-Id", "pattern": ".", "tag": "list"},
    {"header": "Auto-Submitted", "pattern": "^auto-", "tag": "automatic"},
    {"header": "Subject", "pattern": r"\binvoice\b", "tag": "invoice"},
]


def mq_context_initialize(context: mqcore.Context) -> None:
    rules = context.config.get("rules", RULES)
    context.data["rules"] = [
        (rule["header"], re.compile(rule["pattern"], re.IGNORECASE), rule["tag"]) for rule in rules
    ]


def mq_smtp_in_message(context: mqcore.Context, message: Mail) -> mqcore.HookResult:
    headers = message.headers
    for header, pattern, tag in context.data["rules"]:
        found = any(pattern.search(value) for value in headers.get_all(header))
        # A step may start again (see 60-unsrs.py), so what is done already is not done twice.
        if found and tag not in headers.get_all("X-Tag"):
            headers.add("X-Tag", tag)
    return False
