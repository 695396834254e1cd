"""What can go wrong between a client and a broker: reply codes of AMQP 0-9-1 (1.2, constants)."""

from __future__ import annotations

CONTENT_TOO_LARGE = 311
NO_ROUTE = 312
CONNECTION_FORCED = 320
ACCESS_REFUSED = 403
NOT_FOUND = 404
PRECONDITION_FAILED = 406
FRAME_ERROR = 501
SYNTAX_ERROR = 502
COMMAND_INVALID = 503
CHANNEL_ERROR = 504
UNEXPECTED_FRAME = 505
RESOURCE_ERROR = 506
NOT_ALLOWED = 530


class ProtocolError(Exception):
    """What the other side sent is not AMQP 0-9-1, or makes no sense where it came: the connection ends. The code tells the
    broker what kind of fault it is."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class StateError(Exception):
    """A request that cannot be made as things are: the connection or the channel is not open."""
