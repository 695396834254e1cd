"""The stages of SMTP that `mqcore try` runs: alone in a module, as the command needs them for its options, and no more."""

STAGES = ("mq_smtp_in_connect", "mq_smtp_in_mailfrom", "mq_smtp_in_rcptto", "mq_smtp_in_data", "mq_smtp_in_message")
"""In the order in which a mail comes to them."""
