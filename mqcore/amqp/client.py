"""AMQP 0-9-1 as a client speaks it, without I/O, for programs with sockets of their own: see docs/rabbitmq.md."""

from __future__ import annotations

from ._channel import Delivery
from ._properties import encode_properties
from ._protocol import ClientProtocol
from ._unconfirmed import Outcome
from .errors import ProtocolError, StateError
from .events import (
    Blocked,
    ChannelClosed,
    ChannelOpened,
    ConfirmSelected,
    ConnectionClosed,
    ConnectionOpened,
    ConsumeCancelled,
    ConsumeStarted,
    Event,
    ExchangeDeclared,
    Flow,
    GetEmpty,
    QosSet,
    QueueDeclared,
    QueueDeleted,
    QueuePurged,
    SecretUpdated,
    Unblocked,
)
from .fields import Properties, Timestamp
from .options import ClientOptions

__all__ = [
    "Blocked",
    "ChannelClosed",
    "ChannelOpened",
    "ClientOptions",
    "ClientProtocol",
    "ConfirmSelected",
    "ConnectionClosed",
    "ConnectionOpened",
    "ConsumeCancelled",
    "ConsumeStarted",
    "Delivery",
    "Event",
    "ExchangeDeclared",
    "Flow",
    "GetEmpty",
    "Outcome",
    "Properties",
    "ProtocolError",
    "QosSet",
    "QueueDeclared",
    "QueueDeleted",
    "QueuePurged",
    "SecretUpdated",
    "StateError",
    "Timestamp",
    "Unblocked",
    "encode_properties",
]
