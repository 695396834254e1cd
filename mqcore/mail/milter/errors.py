"""What goes wrong with mail that stays with the server which asks about it."""

from __future__ import annotations


class Unsayable(ValueError):
    """What plugins made of the mails of one message, no answer to a server can say."""
