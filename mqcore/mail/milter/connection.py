"""What plugins see of the client of a mail server that asks us."""

from __future__ import annotations

from ._session import MilterConnection

__all__ = ["MilterConnection"]
