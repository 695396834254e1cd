"""What a client says of itself when it connects, and where it draws the line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    user: str = ""
    """Empty to log in by the certificate of TLS (EXTERNAL)."""
    password: str = field(default="", repr=False)
    vhost: str = "/"
    properties: Mapping[str, Any] = field(default_factory=dict)
    """What the broker shows of this client, as `connection_name`."""
    channel_max: int = 2047
    """The broker may ask for less of these three."""
    frame_max: int = 131_072
    """Octets."""
    heartbeat: int = 60
    """Seconds; 0 for none."""
    max_body: int = 128 << 20
    """Octets of a message; of one that has more, the body is dropped."""

    def __post_init__(self) -> None:
        for name, least, most in (("channel_max", 1, 65_535), ("frame_max", 4096, 1 << 31), ("heartbeat", 0, 65_535)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} can be {least} to {most}, not {getattr(self, name)}")
        if not 0 <= self.max_body <= 1 << 40:
            raise ValueError(f"max_body can be 0 to {1 << 40}, not {self.max_body}")
