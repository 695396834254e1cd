"""What messages have beside their body, and values that Python has no type for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Timestamp(int):
    """Seconds since 1970: whatever number a publisher wrote, which need not be one that `datetime` knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """The properties of a message, as `basic` has them; None for one that is not there."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    delivery_mode: int | None = None
    """2: the broker keeps it on disk."""
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None
