"""The hooks that `mqcore try` runs: alone in a module, as the command needs them for its options, and no more."""

STAGES = ("mq_smtp_in_connect", "mq_smtp_in_mailfrom", "mq_smtp_in_rcptto", "mq_smtp_in_data", "mq_smtp_in_message")
"""In the order in which a mail comes to them."""
STAGES_WITH_LOGIN = (STAGES[0], "mq_smtp_in_secure", "mq_smtp_in_authenticate", *STAGES[1:])
"""Those of a client that begins TLS and logs in."""
HOOKS = (*STAGES_WITH_LOGIN, "mq_smtp_in_close", "mq_smtp_out_data", "mq_smtp_out_sent")
"""All that can be run by themselves."""
