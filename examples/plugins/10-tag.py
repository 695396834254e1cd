"""Tag mail by its headers: put a line `X-Tag: NAME` on top of each mail that a rule matches.

Its rules may be set in mqcore.toml:

    [plugins.10-tag]
    rules = [{ header = "List-Id", pattern = ".", tag = "list" }]
"""

import re
from email.parser import BytesHeaderParser

BLANK_LINE = re.compile(rb"\r?\n\r?\n")
RULES = [
    {"header": "List-Id", "pattern": ".", "tag": "list"},
    {"header": "Auto-Submitted", "pattern": "^auto-", "tag": "automatic"},
    {"header": "Subject", "pattern": r"\binvoice\b", "tag": "invoice"},
]


def mq_context_initialize(context):
    rules = context.config.get("rules", RULES)
    context.data["rules"] = [
        (rule["header"], re.compile(rule["pattern"], re.IGNORECASE), rule["tag"]) for rule in rules
    ]


def mq_smtp_in_message(context, message):
    blank_line = BLANK_LINE.search(message.mime)
    head = message.mime[: blank_line.end()] if blank_line else message.mime
    headers = BytesHeaderParser().parsebytes(head)
    newline = "\r\n" if head.endswith(b"\r\n") else "\n"
    for header, pattern, tag in context.data["rules"]:
        found = any(pattern.search(str(value)) for value in headers.get_all(header, []))
        # A step may start again (see 60-unsrs.py), so what is done already is not done twice.
        if found and tag not in headers.get_all("X-Tag", []):
            message.mime = f"X-Tag: {tag}{newline}".encode() + message.mime
    return False
