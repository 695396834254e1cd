"""One connection of a mail server that asks a milter: what it sends becomes events, and answers become packets.

Version 6 of the protocol, as libmilter's `mfdef.h` and Postfix's `milter8.c` have it. It is written down nowhere else.
"""

from __future__ import annotations

from ._protocol import MAX_MESSAGE, MilterProtocol
from .answers import Changes, reply

__all__ = ["MAX_MESSAGE", "Changes", "MilterProtocol", "reply"]
